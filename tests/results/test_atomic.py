"""Files appear whole or not at all, and errors say what to do."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cispbench.results import atomic
from cispbench.results.atomic import make_folder, write_atomic
from cispbench.splits.errors import StoreError


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two" * 100_000)
    assert path.read_bytes() == b"two" * 100_000
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_as_open_to_others_as_any_new_file(tmp_path: Path) -> None:
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    plain.write_bytes(b"")
    write_atomic(atomic, b"")
    assert atomic.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, ["disk is full", "Free some space"]),
        (errno.EDQUOT, ["quota", "Free some space"]),
        (errno.EROFS, ["read-only", "permissions"]),
        (errno.EACCES, ["read-only", "permissions"]),
        (errno.EPERM, ["read-only", "permissions"]),
        (errno.EIO, [os.strerror(errno.EIO), "Check the disk"]),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, words: list[str]
) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), refuse)
    with pytest.raises(StoreError) as caught:
        write_atomic(path, b"new")
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file.json", b"new")
    assert list(tmp_path.iterdir()) == []


def test_data_and_folder_are_both_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    real = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_atomic(tmp_path / "file.json", b"new")
    assert synced == [False, True]


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def refuse_second(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "fsync", refuse_second)
    write_atomic(tmp_path / "file.json", b"new")
    assert len(calls) == 2
    assert (tmp_path / "file.json").read_bytes() == b"new"


def test_things_in_the_way_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=r"missing.*does not exist.*Create"):
        write_atomic(tmp_path / "missing" / "file", b"")
    with pytest.raises(StoreError, match="in the way of a folder"):
        write_atomic(tmp_path / "file" / "file", b"")
    with pytest.raises(StoreError, match="a folder is in the way"):
        write_atomic(tmp_path / "folder", b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="in the way of a folder"):
            make_folder(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_make_folder_makes_parents_and_accepts_what_is_there(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_writers_of_different_content_meet_and_each_is_whole(tmp_path: Path) -> None:
    """Every write that reports success was there: the last one stays, and no temporary file is left."""
    path, wanted = tmp_path / "file.json", [bytes([65 + number]) * 50_000 for number in range(8)]
    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            for outcome in [pool.submit(write_atomic, path, data) for data in wanted]:
                outcome.result()
        assert path.read_bytes() in wanted
        assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_work_is_no_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second writer finishes while the first is about to rename: the first one's content is written, and reported."""
    path, real = tmp_path / "file.json", Path.replace

    def meet(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", real)
        write_atomic(path, b"second")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", meet)
    write_atomic(path, b"first")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_whose_file_is_taken_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "file.json", Path.replace
    write_atomic(path, b"old")

    def lose_once(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", real)
        self.unlink()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", lose_once)
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"

    def lose(self: Path, target: Path) -> Path:
        self.unlink()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", lose)
    with pytest.raises(StoreError, match="cannot write"):
        write_atomic(path, b"never")
    assert path.read_bytes() == b"new"


def test_what_a_killed_writer_left_is_swept_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file[1].json"
    left, other = tmp_path / ".file[1].json.abc.tmp", tmp_path / ".file1.json.abc.tmp"
    left.write_bytes(b"half")
    other.write_bytes(b"of another file")
    write_atomic(path, b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, other])
    left.write_bytes(b"half")
    real = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self == left:
            raise OSError(errno.EIO, "broken")
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    write_atomic(path, b"again")  # the write is done, whatever happens to the leftover
    assert path.read_bytes() == b"again"
    assert left.exists()


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "file.json", tmp_path / "link.json"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write_atomic(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file.json", "link.json", "real"]
    real.unlink()
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    for broken in (link, circle):
        with pytest.raises(StoreError, match="symbolic link that points to no file"):
            write_atomic(broken, b"new")
        assert broken.is_symlink()
    assert not real.exists()


def test_new_folders_are_synced_into_their_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(atomic, "sync_folder", synced.append)
    make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2
