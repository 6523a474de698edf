"""Text for a terminal of 100 columns: tables without frames, the wide ones cut between their settings."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby

from tabulate import SEPARATING_LINE, tabulate

from cispbench.reports.tables.layout import Column, Section, Table, plain, printable

WIDTH = 100
_MARKED = {0: "{}", 1: "\x1b[1m{}\x1b[0m", 2: "\x1b[4m{}\x1b[0m"}


def plain_table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> str:
    """Return a table of columns two spaces apart; empty columns are left out, those named in ``right`` end flush."""
    columns = [column for column in zip(headers, *rows, strict=True) if any(column[1:])]
    texts = list(zip(*(column[1:] for column in columns), strict=True))
    return _aligned(Table([Column(name, right=name in right) for name, *_ in columns], list(map(plain, texts))))


def paragraph(text: str, indent: str = "") -> str:
    """Return a text in lines of the terminal's width, all but the first indented."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def render_terminal(sections: Sequence[Section], marked: bool = False) -> str:
    """Return sections as text of the terminal's width; ``marked``: the best of a column bold, the second underlined.

    A table that is too wide is cut between the settings above its columns, if it can be; the first columns, whose texts
    say what a row is, are repeated. No library does that: tabulate, which aligns the columns, would wrap the texts.
    """
    parts = []
    for section in sections:
        table, notes = section.table, section.all_notes if marked else section.notes
        parts += [paragraph(printable(text)) for text in (section.heading, section.intro)]
        for block in _blocks(table):
            rows = [[row[i] for i in block] for row in table.rows]
            parts.append(_aligned(Table([table.columns[i] for i in block], rows, table.rules), marked))
        parts += [paragraph(printable(note)) for note in notes]
    return "\n\n".join(parts)


def _blocks(table: Table) -> list[list[int]]:
    """Return the columns of each part of a table that fits the width; the texts at its left are in all of them.

    Columns below one setting stay together where they fit; a column that does not fit by itself is not cut.
    """
    count = len(table.columns)
    widths = [
        max(len(printable(text)) for text in (table.columns[i].name, *(row[i].text for row in table.rows)))
        for i in range(count)
    ]

    def fits(columns: Sequence[int]) -> bool:
        return sum(widths[i] + 2 for i in columns) - 2 <= WIDTH

    fixed = list(range(next((i for i, column in enumerate(table.columns) if column.right), 0)))
    blocks = [fixed]
    # A column without a setting above it is a unit of its own, which its index as a key makes it.
    for _, columns in groupby(range(len(fixed), count), lambda i: table.columns[i].over or i):
        unit = list(columns)
        for piece in [unit] if fits([*fixed, *unit]) else [[i] for i in unit]:
            if blocks[-1] == fixed or fits([*blocks[-1], *piece]):
                blocks[-1] = [*blocks[-1], *piece]
            else:
                blocks.append([*fixed, *piece])
    return blocks


def _aligned(table: Table, marked: bool = False) -> str:
    rows: list[list[str] | str] = [
        [_MARKED[rank if marked else 0].format(printable(text)) for text, rank in row] for row in table.rows
    ]
    for index in sorted(table.rules, reverse=True):
        rows.insert(index, SEPARATING_LINE)
    # The names go in as a row: tabulate makes a column two characters wider than a header.
    names = [printable(column.name) for column in table.columns]
    sides = ["right" if column.right else "left" for column in table.columns]
    drawn = tabulate([names, SEPARATING_LINE, *rows], tablefmt="simple", colalign=sides, disable_numparse=True)
    lines = drawn.splitlines()[1:-1]  # without the rules around the table
    if table.spans:
        lines.insert(0, _headings(table, [len(rule) for rule in lines[1].split()]))
    return "\n".join(line.rstrip() for line in lines)


def _headings(table: Table, widths: Sequence[int]) -> str:
    """Return the line of shared headings; a long one is cut off at the width of its columns."""
    texts, start = [], 0
    for over, count in table.spans:
        width = sum(widths[start : start + count]) + 2 * (count - 1)
        texts.append(printable(over)[:width].center(width))
        start += count
    return "  ".join(texts)
