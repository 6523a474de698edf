"""Damage to a file of baselines: a check against other numbers than were measured would pass or fail without a word."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest

from cispbench.results.baselines_files import COMMITTED, read_baselines
from cispbench.splits.errors import StoreError

FLIPS = 300


def test_no_flipped_bit_of_a_baseline_is_read(tmp_path: Path) -> None:
    (path,) = (Path(shutil.copy(file, tmp_path)) for file in COMMITTED.glob("*.json"))
    sound, rng = path.read_bytes(), random.Random(14)
    assert read_baselines(tmp_path)[0].cells
    for bit in [*range(8 * 110), *(rng.randrange(8 * len(sound)) for _ in range(FLIPS))]:
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(data))
        with pytest.raises(StoreError) as caught:
            read_baselines(tmp_path)
        assert str(path) in str(caught.value), bit


def test_a_digit_changed_by_hand_is_refused(tmp_path: Path) -> None:
    (path,) = (Path(shutil.copy(file, tmp_path)) for file in COMMITTED.glob("*.json"))
    written = path.read_text()
    changed = re.sub(r'"mean": 8', '"mean": 2', written, count=1)
    assert changed != written
    path.write_text(changed)
    with pytest.raises(StoreError, match="not what was written"):
        read_baselines(tmp_path)
