"""Files appear whole or not at all, and errors say what to do."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

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
