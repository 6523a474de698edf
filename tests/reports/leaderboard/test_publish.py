"""Several files written together: a full disk or a kill while they are written leaves all of them as they were."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cispbench.reports.leaderboard.publish import publish
from cispbench.splits.errors import StoreError

KILLED = """
import os, signal, stat, sys
from pathlib import Path
from cispbench.reports.leaderboard.board import load_leaderboard
from cispbench.reports.leaderboard.page import write_leaderboard
from cispbench.results.store import Store

folder, calls, sync = Path(sys.argv[1]), [], os.fsync

def fsync(descriptor):
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        calls.append(descriptor)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)

os.fsync = fsync
write_leaderboard(load_leaderboard(Store(folder / "none"), "mib20"), folder)
"""


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix not in (".tmp", ".new")
    }


def test_all_files_are_written(tmp_path: Path) -> None:
    files = {tmp_path / name: name.encode() for name in ("one", "two")}
    publish(files)
    assert contents(tmp_path) == files and len(list(tmp_path.iterdir())) == 2


def test_a_disk_that_is_full_at_the_last_file_changes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {tmp_path / name: b"old" for name in ("one", "two", "three")}
    publish(files)
    calls: list[int] = []

    def full(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*three.new: the disk is full"):
        publish(dict.fromkeys(files, b"new"))
    assert contents(tmp_path) == files and len(list(tmp_path.iterdir())) == 3


def test_a_folder_in_the_way_of_one_file_changes_none(tmp_path: Path) -> None:
    publish({tmp_path / "one": b"old"})
    (tmp_path / "two").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*two: a folder is in the way"):
        publish({tmp_path / "one": b"new", tmp_path / "two": b"new"})
    assert contents(tmp_path) == {tmp_path / "one": b"old"}


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_leaderboard_that_is_killed_while_it_is_written_stays_the_old_one(tmp_path: Path, moment: int) -> None:
    words = [sys.executable, "-m", "cispbench.harness.cli", "leaderboard", "--output", str(tmp_path)]
    subprocess.run(words, check=True, capture_output=True, cwd=tmp_path)
    before = contents(tmp_path)
    assert len(before) == 3
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(moment)], check=False, cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert contents(tmp_path) == before
    subprocess.run([*words, "--protocol", "mib20"], check=True, capture_output=True, cwd=tmp_path)
    after = contents(tmp_path)
    assert after.keys() == before.keys() and after != before
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".new"]  # what the killed one left is swept up
