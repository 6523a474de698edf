"""A file with a checksum: every flipped bit is noticed, and so is a key that stands there twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cispbench.results.checked_json import (
    ChecksumError,
    add_checksum,
    loads_once,
    read_checked,
    verify_checksum,
    write_checked,
)

CONTENT = {"format": 1, "counts": [[1, 2], [3, 400]], "name": "ä"}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_checked(tmp_path / "file.json", CONTENT)
    assert read_checked(tmp_path / "file.json") == CONTENT


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_checked(path, CONTENT)
    sound = path.read_bytes()
    for place in range(8 * len(sound)):
        damaged = bytearray(sound)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ChecksumError):
            read_checked(path)


@pytest.mark.parametrize("kept", [0, 1, 40, 90, -1])
def test_a_file_cut_short_is_noticed(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "file.json"
    write_checked(path, CONTENT)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ChecksumError):
        read_checked(path)


def test_a_file_without_a_checksum_says_so() -> None:
    with pytest.raises(ChecksumError, match="carries no checksum"):
        verify_checksum(b'{\n "format": 1\n}\n')


def test_a_key_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'all' occurs twice"):
        loads_once('{"a": {"all": 1, "all": 2}}')


def test_nesting_without_end_is_no_crash() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        loads_once("[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize("text", ["[]", "{}", "{\n}\n", '{"a": 1}'])
def test_only_an_object_with_one_member_a_line_can_carry_one(text: str) -> None:
    with pytest.raises(ValueError, match="one member a line"):
        add_checksum(text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_plain_file_is_wrong_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    (os.mkfifo if kind == "pipe" else os.mkdir)(tmp_path / "file.json")
    with pytest.raises(ValueError, match=f"it is a {kind}, not a plain file"):
        read_checked(tmp_path / "file.json")
