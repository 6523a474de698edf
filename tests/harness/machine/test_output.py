"""What commands print is shown and never obeyed; output that cannot be written is an error, messages are dropped."""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

import pytest

from cispbench.harness.machine.output import escaped_streams, unescaped
from cispbench.splits.errors import CispbenchError

HOSTILE = "a\x1b]0;title\x07b\x1b[2Jc\x9b5Fd\re\udce9f\u202eg\x00"
SHOWN = r"a\x1b]0;title\x07b\x1b[2Jc\x9b5Fd\re\udce9f\u202eg\x00"


class Terminal(io.StringIO):
    """A stream of an encoding; ``fails``: the number of the error of every flush."""

    def __init__(self, tty: bool = False, encoding: str = "utf-8", fails: int | None = None) -> None:
        super().__init__()
        self.tty, self.fails, self._encoding = tty, fails, encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self.tty

    def flush(self) -> None:
        if self.fails is not None:
            raise OSError(self.fails, "No space left on device")


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_control_characters_are_spelled_out(monkeypatch: pytest.MonkeyPatch, name: str, tty: bool) -> None:
    stream = Terminal(tty)
    monkeypatch.setattr(sys, name, stream)
    with escaped_streams():
        getattr(sys, name).write(f"{HOSTILE}\tx\r\n")
        print("\x1b[1mbest\x1b[0m", file=getattr(sys, name))
        unescaped(getattr(sys, name)).write("\x1b[3F")
    best = "\x1b[1mbest\x1b[0m" if tty else r"\x1b[1mbest\x1b[0m"
    assert stream.getvalue() == f"{SHOWN}\tx\r\n{best}\n\x1b[3F"
    assert getattr(sys, name) is stream


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_spelled_out(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream = Terminal(encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with escaped_streams():
        print("mIoU \u2265 50")
    assert stream.getvalue() == "mIoU \\u2265 50\n"


def test_a_full_disk_is_an_error_for_output_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal(fails=errno.ENOSPC))
    monkeypatch.setattr(sys, "stderr", Terminal(fails=errno.ENOSPC))
    with escaped_streams():
        print("a message", file=sys.stderr, flush=True)
        with pytest.raises(CispbenchError, match="cannot write to standard output: No space left on device"):
            print("a table", flush=True)


def test_a_reader_that_is_gone_stays_the_systems_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal(fails=errno.EPIPE))
    with escaped_streams(), pytest.raises(BrokenPipeError):
        print("a table", flush=True)


def test_bars_escape_their_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    from cispbench.harness.machine.progress import make_view

    stream: Any = Terminal(tty=True)
    monkeypatch.setattr(sys, "stderr", stream)
    with escaped_streams(), make_view() as view:
        view.counting("reading masks", 1, 3)
        view.note(HOSTILE)
    assert SHOWN in stream.getvalue()
    assert "\r" in stream.getvalue()  # the bar itself moves the cursor
    assert "\\r\\" not in stream.getvalue().replace(SHOWN, "")
