"""Open plain files alone: a pipe keeps its reader waiting for ever, and a device such as /dev/zero never ends."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path


class NotPlainError(OSError):
    """A path that is not a plain file, or a file that is too large. The message names no file."""


def open_plain(path: Path) -> BufferedReader:
    """Open a file for reading its bytes; links are followed. Raises NotPlainError, or OSError as ``open`` does."""
    # The kind is asked of the open file, not of its name, which another process may change in between. Without
    # O_NONBLOCK the opening of a pipe waits until somebody writes into it.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise NotPlainError("it is not a plain file, but a folder, a pipe or a device")
    return open(number, "rb")  # noqa: PTH123 -- a number is no path


def read_plain(path: Path, most: int) -> bytes:
    """Return the bytes of a file. Raises NotPlainError for more than ``most`` bytes, and as ``open_plain`` does."""
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise NotPlainError(f"it is larger than {most:,} bytes")
    return content
