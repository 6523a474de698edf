"""What is no regular file is named as what it is, and neither waited for nor read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cispbench.harness.data.decode import read_regular_file
from cispbench.splits.errors import DataError


def make(kind: str, path: Path) -> None:
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a device", "a socket"])
def test_a_special_file_is_named_and_never_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    make(kind, Path("a.png"))
    with pytest.raises(DataError, match=rf"the mask a\.png is {kind}, not a plain file") as caught:
        read_regular_file(Path("a.png"), "mask")
    assert caught.value.hint


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert read_regular_file(tmp_path / "link", "mask") == b"content"


def test_a_link_in_a_circle_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(DataError, match=r"the image .*circle is truncated or unreadable"):
        read_regular_file(tmp_path / "circle", "image")
    with pytest.raises(DataError, match=r"the image .*gone does not exist"):
        read_regular_file(tmp_path / "gone", "image")
