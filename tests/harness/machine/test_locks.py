"""Locks: one holder, a message that names it, freed by its death."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from cispbench.harness.machine.locks import HOLDER, LOCK, HeldError, current_holder, is_held, read_holder, run_lock
from cispbench.splits.errors import RunError, StoreError

HOLD = """
import sys, time
from pathlib import Path
from cispbench.harness.machine.locks import run_lock
with run_lock(Path(sys.argv[1]), "training step 3", 0):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path):
    """Another process that holds ``tmp_path``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_holder_is_noted_and_the_note_leaves_with_it(tmp_path: Path) -> None:
    with run_lock(tmp_path, "training step 3", 0):
        holder = read_holder(tmp_path)
        assert holder is not None
        assert (holder.pid, holder.what) == (os.getpid(), "training step 3")
        assert holder.since.endswith("+00:00")
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, HOLDER]
    assert read_holder(tmp_path) is None
    with run_lock(tmp_path, "again", 0):
        pass


def test_the_note_does_not_name_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "node17.cluster.example")
    with run_lock(tmp_path, "training", 0):
        assert "node17" not in (tmp_path / HOLDER).read_text()


def test_a_second_process_is_told_who_is_at_work(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with pytest.raises(HeldError) as caught, run_lock(tmp_path, "training step 3", 0):
        pass
    message = caught.value.message
    assert f"another process (pid {other.pid}, since " in message
    assert "UTC, on this machine) is already at work on " in message
    assert str(tmp_path) in message
    assert message.endswith(": training step 3.")
    assert caught.value.hint
    copied = pickle.loads(pickle.dumps(caught.value))  # as it comes out of a pool of processes
    assert (copied.message, copied.hint, copied.folder) == (message, caught.value.hint, tmp_path)


def test_a_holder_on_another_machine_is_said_to_be_there(tmp_path: Path) -> None:
    note = {"pid": 1, "since": "2024-05-01T12:03:04+00:00", "what": "training", "host": "0123456789abcdef"}
    with FileLock(tmp_path / LOCK):
        (tmp_path / HOLDER).write_text(json.dumps(note))
        with pytest.raises(RunError, match=r"pid 1, since 2024-05-01 12:03:04 UTC, on another machine"):
            run_lock(tmp_path, "training", 0).__enter__()


def test_death_frees_the_lock_and_the_stale_note_does_not_matter(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait(10)
    stale = read_holder(tmp_path)
    assert stale is not None
    assert stale.pid == other.pid
    with run_lock(tmp_path, "taking over", 0):
        holder = read_holder(tmp_path)
        assert holder is not None
        assert (holder.pid, holder.what) == (os.getpid(), "taking over")


def test_whether_it_is_held_is_told_while_its_holder_lives(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    for _ in range(3):
        holder = current_holder(tmp_path)
        assert holder is not None
        assert (holder.pid, holder.what) == (other.pid, "training step 3")
    other.kill()
    other.wait(10)
    assert read_holder(tmp_path) is not None
    assert current_holder(tmp_path) is None
    assert not is_held(tmp_path)


def test_who_looks_whether_it_is_held_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cispbench.harness.machine.locks.GLANCE_SECONDS", 5.0)
    (tmp_path / LOCK).touch()
    with (tmp_path / LOCK).open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (look, fcntl.LOCK_UN)).start()
        with run_lock(tmp_path, "training", 0):
            assert is_held(tmp_path)


def test_the_note_of_a_machine_that_has_died_is_not_believed(tmp_path: Path) -> None:
    note = {"pid": 1, "since": "2024-05-01T12:03:04+00:00", "what": "training", "host": "0123456789abcdef"}
    (tmp_path / HOLDER).write_text(json.dumps(note))
    assert current_holder(tmp_path) is None
    (tmp_path / LOCK).touch()
    assert current_holder(tmp_path) is None
    with FileLock(tmp_path / LOCK):
        holder = current_holder(tmp_path)
        assert holder is not None
        assert holder.host == "0123456789abcdef"


@pytest.mark.parametrize(
    "note",
    [
        "",
        "{",
        "[]",
        '{"pid": 1}',
        '{"pid": 1, "since": "x", "what": "", "host": ""}',
        '{"pid": "1", "since": "2024-05-01T12:03:04+00:00", "what": "", "host": ""}',
    ],
)
def test_a_note_that_cannot_be_read_names_nobody(tmp_path: Path, note: str) -> None:
    with FileLock(tmp_path / LOCK):
        (tmp_path / HOLDER).write_text(note)
        with pytest.raises(RunError, match=r"^another process is already at work on "):
            run_lock(tmp_path, "training", 0).__enter__()


def test_a_dead_process_is_not_named(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait(10)
    with FileLock(tmp_path / LOCK), pytest.raises(RunError) as caught, run_lock(tmp_path, "training", 0):
        pass
    assert str(other.pid) not in caught.value.message.replace(str(tmp_path), "")


def test_waiting_is_said_once_and_ends_when_the_holder_does(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    said: list[str] = []
    killer = threading.Timer(0.7, other.kill)
    killer.start()
    start = time.monotonic()
    with run_lock(tmp_path, "mine", None, on_wait=said.append):
        waited = time.monotonic() - start
    killer.join()
    assert 0.5 < waited < 10
    assert len(said) == 1
    assert f"pid {other.pid}" in said[0]
    assert "waiting until it ends" in said[0]


def test_waiting_has_an_end(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    said: list[str] = []
    start = time.monotonic()
    with (
        pytest.raises(RunError, match=r"waited for 0\.5 s"),
        run_lock(tmp_path, "mine", 0.5, on_wait=said.append),
    ):
        pass
    assert 0.4 < time.monotonic() - start < 5
    assert len(said) == 1
    assert "up to 0.5 s" in said[0]


def test_the_lock_is_freed_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path, "failing", 0):
        _ = 1 / 0
    with run_lock(tmp_path, "again", 0):
        pass


def test_a_missing_folder_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"), run_lock(tmp_path / "absent", "training", 0):
        pass
    assert not (tmp_path / "absent").exists()


def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "not yours to write")

    # Not by the folder's mode, which does not bind every user that may run the tests.
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="not yours to write"):
        patch.setattr("filelock.FileLock._acquire", refuse)
        run_lock(tmp_path, "training", 0).__enter__()
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="not yours to write"):
        patch.setattr("os.fsync", refuse)
        run_lock(tmp_path, "training", 0).__enter__()
    with run_lock(tmp_path, "the failed note did not keep the lock", 0):
        pass


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", lack)  # as on some network drives; a lock of another kind would outlive us
    with pytest.raises(StoreError, match="supports locks"):
        run_lock(tmp_path, "training", 0).__enter__()


def test_a_lock_name_that_is_taken_by_a_folder_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(StoreError, match="cannot lock"), run_lock(tmp_path, "training", 0):
        pass


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", [LOCK, HOLDER])
def test_a_pipe_in_place_of_a_lock_or_a_note_keeps_nobody_waiting(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert not is_held(tmp_path)
    assert read_holder(tmp_path) is None
    assert current_holder(tmp_path) is None
