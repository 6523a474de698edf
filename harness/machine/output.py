"""Standard output and error as commands write to them: whatever a text says, it is shown and never obeyed.

Names of files, keys of JSON and texts of records come from anybody. Each command prints them, in tables, in errors and
as CSV. They are therefore escaped in one place, which every text passes.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from cispbench.splits.errors import CispbenchError
from cispbench.splits.printable import printable

_LINES = re.compile("(\r?\n|\t)")
_LINES_AND_MARKS = re.compile("(\r?\n|\t|\x1b\\[[014]m)")  # and plain, bold and underlined, of tables on a terminal


class _EscapedStream:
    """A text stream that spells out control characters, and what its encoding lacks; the rest is the stream's own."""

    # It takes every character. Where a stream says ASCII, click goes round it to the bytes below.
    encoding = "utf-8"

    def __init__(self, stream: TextIO) -> None:
        self.unescaped = stream
        self._kept = _LINES_AND_MARKS if stream.isatty() else _LINES

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)

    def write(self, text: str) -> int:
        encoding = self.unescaped.encoding or self.encoding
        shown = escaped(text, self._kept).encode(encoding, "backslashreplace").decode(encoding)
        self._do(self.unescaped.write, shown)
        return len(text)

    def flush(self) -> None:
        self._do(self.unescaped.flush)

    def _do(self, action: Any, *values: str) -> None:
        action(*values)


class _Output(_EscapedStream):
    """What cannot be written is an error: a table that is cut off looks like a whole one."""

    def _do(self, action: Any, *values: str) -> None:
        try:
            action(*values)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has seen enough: click ends the command without a word
                raise
            raise CispbenchError(f"cannot write to standard output: {error.strerror}.") from error


class _Messages(_EscapedStream):
    """Messages that nobody can read are dropped: hours of training must not end for them."""

    def _do(self, action: Any, *values: str) -> None:
        with suppress(OSError):
            action(*values)


def escaped(text: str, kept: re.Pattern[str] = _LINES) -> str:
    """Return a text with all control characters but ``kept``, by default line ends and tabs, spelled out."""
    parts = kept.split(text)
    parts[::2] = map(printable, parts[::2])
    return "".join(parts)


def unescaped(stream: TextIO) -> TextIO:
    """Return the stream below an escaping one, for views that move the cursor and escape texts themselves."""
    return cast(TextIO, getattr(stream, "unescaped", stream))


@contextmanager
def escaped_streams() -> Iterator[None]:
    """Escape what is written to standard output and error; at the end, throw away what cannot be written."""
    _fill_closed()
    # Python sets them to None where they are closed.
    output, messages = cast("TextIO | None", sys.stdout), cast("TextIO | None", sys.stderr)
    if output is not None:
        sys.stdout = cast(TextIO, _Output(output))
    sys.stderr = cast(TextIO, _Messages(messages or io.StringIO()))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, messages)
        for stream in (output, messages):
            _settle(stream)


def check_output() -> None:
    """Raise CispbenchError if standard output is closed: hours of work would end in a result that nobody sees."""
    if cast("TextIO | None", sys.stdout) is None:
        raise CispbenchError("standard output is closed.", hint="To throw it away, use >/dev/null.")


def _fill_closed() -> None:
    """Open the closed ones of the file descriptors 0, 1 and 2 on /dev/null.

    Otherwise the next file that is opened takes their number, and what a library prints ends up in a record.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


def _settle(stream: TextIO | None) -> None:
    """Write what is left, or throw it away: Python would try again at its end, and print a traceback."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
