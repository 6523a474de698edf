"""A sweep whose processes are killed at random ends as if nothing had been; a short run of ``tests/chaos/run.py``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHAOS = Path(__file__).parents[2] / "chaos" / "run.py"
QUIET = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the sweep's processes")
def test_killing_any_process_of_a_sweep_changes_nothing(commands: Any, tmp_path: Path) -> None:
    _, _, _, _, _, *recipe = commands.tiny(method="mib", iterations=(120, 80))
    recipe = recipe[: recipe.index("--out")]
    sweep = ["--methods", "finetune,mib", "--settings", "overlapped-10-5", "--workers", "2", *recipe]
    calm = type(commands)(tmp_path / "calm", commands.data)
    commands.succeed(["sweep", *sweep, *calm.places()])
    # Often enough that all kills come before the sweep can end on a fast machine.
    chaos = [sys.executable, str(CHAOS), "--kills", "4", "--every", "0.3", "1.5", "--seed", "15"]
    chaos += ["--home", str(tmp_path), "--calm", str(calm.home)]
    done = subprocess.run([*chaos, "--", *sweep], capture_output=True, text=True, env=os.environ | QUIET, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills" in done.stdout
    assert re.search(r"^6 of 6 records and weights identical, 6 there; left over: nothing$", done.stdout, re.M)
