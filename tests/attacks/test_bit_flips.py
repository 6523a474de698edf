"""Single flipped bits in every kind of stored file, end to end; ``bit_flips.py`` turns as many as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("bit_flips.py")


@pytest.mark.timeout(300)
def test_no_flipped_bit_leads_to_a_wrong_number() -> None:
    words = [sys.executable, str(SCRIPT), "--flips", "76", "--seed", "14"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = [line.split("  ")[0] for line in done.stdout.splitlines() if line.strip()]
    assert len(kinds) == 19, done.stdout
