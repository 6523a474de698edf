"""Text for a terminal of 110 columns: tables without frames, and numbered references below them."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from cispbench.reports.tables.layout import Section, Table, Text

WIDTH = 110
_MARKS = {1: "\x1b[1m", 2: "\x1b[4m"}
_PLAIN = "\x1b[0m"


def printable(text: str) -> str:
    """Return a text with all that a terminal would obey or a reader not see (control characters) spelt out.

    >>> printable("mib\\x1b[2J")
    'mib\\\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii") if unicodedata.category(character)[0] == "C" else character
        for character in text
    )


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


def render_terminal(sections: Sequence[Section], marked: bool = False) -> str:
    """Return sections as text of the terminal's width; ``marked``: the best of a column bold, the second underlined.

    A table too wide is cut, if it can be between the settings that its columns are below; its first columns, the texts
    that say what a row is, are repeated.
    """
    return "\n\n".join(_section(section, marked) for section in sections)


def _section(section: Section, marked: bool) -> str:
    parts = [paragraph(printable(section.heading)), paragraph(printable(section.intro))]
    parts += [_block(section.table, places, marked) for places in _blocks(section.table)]
    notes = list(section.notes)
    if marked and section.table.ranked:
        notes.append("Bold: the best of a column; underlined: the second.")
    return "\n\n".join([*parts, *(paragraph(printable(note)) for note in notes)])


def _blocks(table: Table) -> list[list[int]]:
    """Return the columns of each part of a table that fits the width; the texts at its left are in all of them.

    Columns below one setting stay together where they fit; a column that does not fit by itself is not cut.
    """
    fixed = list(range(next((place for place, column in enumerate(table.columns) if column.right), 0)))
    blocks = [list(fixed)]
    for unit in _units(table, fixed):
        if _fits(table, [*blocks[-1], *unit]):
            blocks[-1] += unit
            continue
        for columns in [unit] if _fits(table, [*fixed, *unit]) else [[place] for place in unit]:
            if blocks[-1] == fixed or (len(columns) < len(unit) and _fits(table, [*blocks[-1], *columns])):
                blocks[-1] += columns
            else:
                blocks.append([*fixed, *columns])
    return blocks


def _units(table: Table, fixed: Sequence[int]) -> list[list[int]]:
    """Return the columns behind the fixed ones, those below one setting together."""
    units: list[list[int]] = []
    for place in range(len(fixed), len(table.columns)):
        over = table.columns[place].over
        if units and over and over == table.columns[place - 1].over:
            units[-1].append(place)
        else:
            units.append([place])
    return units


def _fits(table: Table, places: Sequence[int]) -> bool:
    return sum(_width(table, place) + 2 for place in places) - 2 <= WIDTH


def _width(table: Table, column: int) -> int:
    texts = [row[column].text for row in table.rows]
    return max(len(printable(text)) for text in (table.columns[column].name, *texts))


def _block(table: Table, places: Sequence[int], marked: bool) -> str:
    columns = [table.columns[place] for place in places]
    widths = [_width(table, place) for place in places]
    lines = [_over(Table(columns, []), widths)] if any(column.over for column in columns) else []
    names = [Text(column.name) for column in columns]
    flush = [column.right for column in columns]
    rule = "  ".join("-" * width for width in widths)
    lines += [_line(names, widths, flush, False), rule]
    for place, row in enumerate(table.rows):
        if place in table.rules:
            lines.append(rule)
        lines.append(_line([row[column] for column in places], widths, flush, marked))
    return "\n".join(line.rstrip() for line in lines)


def _over(table: Table, widths: Sequence[int]) -> str:
    """Return the line of what the columns are below; a long one is cut off at the width of its columns."""
    texts, place = [], 0
    for over, count in table.spans():
        width = sum(widths[place : place + count]) + 2 * (count - 1)
        texts.append(printable(over)[:width].center(width) if over else " " * width)
        place += count
    return "  ".join(texts)


def _line(cells: Sequence[Text], widths: Sequence[int], flush: Sequence[bool], marked: bool) -> str:
    texts = []
    for cell, width, right in zip(cells, widths, flush, strict=True):
        text = printable(cell.text)
        pad = " " * (width - len(text))
        if marked and cell.rank:
            text = f"{_MARKS[cell.rank]}{text}{_PLAIN}"
        texts.append(pad + text if right else text + pad)
    return "  ".join(texts)
