"""Text for a terminal of 110 columns: tables without frames, and numbered references below them."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence

WIDTH = 110


def plain_table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> str:
    """Return a table of columns two spaces apart; empty ones are left out, those named in ``right`` end flush."""
    filled = [list(row) for row in rows]
    kept = [place for place in range(len(headers)) if any(row[place] for row in filled)]
    lines = [[headers[place] for place in kept], *([row[place] for place in kept] for row in filled)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(kept))]
    lines.insert(1, ["-" * width for width in widths])
    flush = [headers[place] in right for place in kept]
    return "\n".join(
        "  ".join(
            text.rjust(width) if end else text.ljust(width)
            for text, width, end in zip(line, widths, flush, strict=True)
        ).rstrip()
        for line in lines
    )


def paragraph(text: str, indent: str = "") -> str:
    """Return a text in lines of the terminal's width, all but the first indented."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


class References:
    """Numbers for the texts that rows refer to, in the order in which they come up."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, *texts: str | None) -> str:
        """Return ``[n]`` for what the texts, as far as given, say together."""
        whole = ". ".join(" ".join(text.split()).rstrip(".") for text in texts if text)
        return f"[{self._numbers.setdefault(whole, len(self._numbers) + 1)}]"

    def text(self) -> str:
        """Return the numbered texts, one a paragraph."""
        return "\n".join(paragraph(f"{f'[{number}]':<5}{text}.", " " * 5) for text, number in self._numbers.items())
