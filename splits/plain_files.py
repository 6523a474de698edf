"""Open plain files alone: a pipe keeps its reader waiting for ever, and a device such as /dev/zero never ends."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device", stat.S_ISBLK: "a device",
}  # fmt: skip


class NotPlainError(OSError, ValueError):
    """A path that is not a plain file, or a file that is too large. The message begins with "it", and names no file.

    It is a ValueError, too: what lies there is wrong, while other OSErrors may pass.
    """


def open_plain(path: Path, *, follow: bool = True) -> BufferedReader:
    """Open a file for reading its bytes. Raises NotPlainError, or OSError as ``open`` does.

    ``follow``: whether ``path`` may be a symbolic link.
    """
    # The kind is asked of the open file, not of its name, which another process may change in between. Without
    # O_NONBLOCK the opening of a pipe waits until somebody writes into it.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        number = os.open(path, flags)
    except OSError:
        if path.is_socket():  # which cannot even be opened
            raise _not_plain(path.stat().st_mode) from None
        raise
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        raise _not_plain(mode)
    return open(number, "rb")  # noqa: PTH123 -- a number is no path


def read_plain(path: Path, most: int | None = None, *, follow: bool = True) -> bytes:
    """Return the bytes of a file. Raises NotPlainError for more than ``most`` bytes, and as ``open_plain`` does."""
    with open_plain(path, follow=follow) as file:
        content = file.read(-1 if most is None else most + 1)
    if most is not None and len(content) > most:
        raise NotPlainError(f"it is larger than {most:,} bytes")
    return content


def _not_plain(mode: int) -> NotPlainError:
    kind = next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "a special file")
    return NotPlainError(f"it is {kind}, not a plain file")
