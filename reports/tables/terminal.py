"""Text for a terminal, as wide as it is: tables without frames, the wide ones cut or with wrapped texts."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby

from tabulate import SEPARATING_LINE, tabulate

from cispbench.reports.tables.layout import Column, Section, Table, plain
from cispbench.reports.tables.markdown import markdown_table
from cispbench.splits.printable import printable

WIDTH = 100  # columns, where the output goes to no terminal
_LINE = 110  # letters of a sentence that still reads well
_WORDS = (re.compile(r"\S+"), re.compile(r"[^\s-]+-*|-+"))  # what stays in one line: at best, and at least
_MARKED = {0: "{}", 1: "\x1b[1m{}\x1b[0m", 2: "\x1b[4m{}\x1b[0m"}


def width() -> int:
    """Return the columns of the terminal, or what COLUMNS says; ``WIDTH`` where there is none."""
    return shutil.get_terminal_size((WIDTH, 24)).columns


def table_text(
    headers: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = (), *, terminal: bool
) -> str:
    """Return a table for a terminal, or else as Markdown, which a file or another program gets."""
    return plain_table(headers, rows, right) if terminal and rows else markdown_table(headers, rows)


def plain_table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> str:
    """Return a table of columns two spaces apart, its texts wrapped where it is wider than the terminal.

    Where that would break words, each row becomes a list of its texts. Empty columns are left out; those named in
    ``right`` end flush, and are not wrapped.
    """
    columns = [column for column in zip(headers, *rows, strict=True) if any(column[1:])]
    texts = list(zip(*(column[1:] for column in columns), strict=True))
    table = Table([Column(name, right=name in right) for name, *_ in columns], list(map(plain, texts)))
    limits = _limits(table, range(len(columns)), width())
    return _aligned(table, limits) if _fit(limits, width()) else _listed(table)


def paragraph(text: str, indent: str = "", columns: int | None = None) -> str:
    """Return a text in lines of ``columns`` characters (None: as the terminal has), all but the first indented."""
    return textwrap.fill(text, columns or min(_LINE, width()), subsequent_indent=indent, break_on_hyphens=False)


def wrap_long(text: str) -> str:
    """Return a text whose lines fit the terminal: those of tables do, and sentences are wrapped."""
    return "\n".join(paragraph(line) if len(line) > width() else line for line in text.split("\n"))


def render_terminal(sections: Sequence[Section], marked: bool = False) -> str:
    """Return sections as text of the terminal's width; ``marked``: the best of a column bold, the second underlined.

    A table that is too wide is cut between the settings above its columns, if it can be; the first columns, whose texts
    say what a row is, are repeated, and wrapped where they leave no room. tabulate, which aligns the columns, cuts
    none.
    """
    parts = []
    for section in sections:
        table, notes = section.table, section.all_notes if marked else section.notes
        parts += [paragraph(printable(text)) for text in (section.heading, section.intro)]
        limits, blocks = _blocks(table)
        for block in blocks:
            rows = [[row[i] for i in block] for row in table.rows]
            part = Table([table.columns[i] for i in block], rows, table.rules)
            parts.append(_aligned(part, [limits[i] for i in block], marked))
        parts += [paragraph(printable(note)) for note in notes]
    return "\n\n".join(parts)


def _limits(table: Table, columns: Sequence[int], room: int) -> list[int]:
    """Return the width of every column, the widest texts among ``columns`` narrowed until these fit into ``room``.

    Words are broken after hyphens where they must be, and nowhere else; so they may not fit.
    """
    texts = [[column.name, *(row[i].text for row in table.rows)] for i, column in enumerate(table.columns)]
    limits = [max(len(printable(text)) for text in column) for column in texts]
    for word in _WORDS:
        least = [
            limit
            if column.right
            else max(len(piece) for text in found for piece in word.findall(printable(text)) or [""])
            for column, found, limit in zip(table.columns, texts, limits, strict=True)
        ]
        while not _fit([limits[i] for i in columns], room):
            wide = [i for i in columns if limits[i] > least[i]]
            if not wide:
                break
            limits[max(wide, key=limits.__getitem__)] -= 1
    return limits


def _fit(limits: Sequence[int], room: int) -> bool:
    return sum(limits) + 2 * (len(limits) - 1) <= room


def _blocks(table: Table) -> tuple[list[int], list[list[int]]]:
    """Return the width of every column, and the columns of each part of a table that fits the terminal.

    One part holds all columns where wrapped texts make the room for them. Else the texts at its left are in all parts.
    Columns below one setting stay together where they fit; a column that does not fit by itself is not cut.
    """
    count, room = len(table.columns), width()
    whole = _limits(table, range(count), room)
    if _fit(whole, room):
        return whole, [list(range(count))]
    fixed = list(range(next((i for i, column in enumerate(table.columns) if column.right), 0)))
    natural = _limits(table, (), room)
    limits = _limits(table, fixed, room - 2 - max((natural[i] for i in range(len(fixed), count)), default=0))

    def fits(columns: Sequence[int]) -> bool:
        return _fit([limits[i] for i in columns], room)

    blocks = [fixed]
    # A column without a setting above it is a unit of its own, which its index as a key makes it.
    for _, columns in groupby(range(len(fixed), count), lambda i: table.columns[i].over or i):
        unit = list(columns)
        for piece in [unit] if fits([*fixed, *unit]) else [[i] for i in unit]:
            if blocks[-1] == fixed or fits([*blocks[-1], *piece]):
                blocks[-1] = [*blocks[-1], *piece]
            else:
                blocks.append([*fixed, *piece])
    return limits, blocks


def _aligned(table: Table, limits: Sequence[int], marked: bool = False) -> str:
    rows: list[list[str] | str] = [
        [
            _MARKED[rank if marked else 0].format(_wrapped(text, limit))
            for (text, rank), limit in zip(row, limits, strict=True)
        ]
        for row in table.rows
    ]
    for index in sorted(table.rules, reverse=True):
        rows.insert(index, SEPARATING_LINE)
    # The names go in as a row: tabulate makes a column two characters wider than a header.
    names = [_wrapped(column.name, limit) for column, limit in zip(table.columns, limits, strict=True)]
    sides = ["right" if column.right else "left" for column in table.columns]
    drawn = tabulate([names, SEPARATING_LINE, *rows], tablefmt="simple", colalign=sides, disable_numparse=True)
    lines = drawn.splitlines()[1:-1]  # without the rules around the table
    if table.spans:
        rule = next(line for line in lines if not set(line) - set("- "))
        lines.insert(0, _headings(table, [len(dashes) for dashes in rule.split()]))
    return "\n".join(line.rstrip() for line in lines)


def _listed(table: Table) -> str:
    """Return each row as lines of a column's name and its text."""
    indent = max(len(printable(column.name)) for column in table.columns) + 2
    return "\n\n".join(
        "\n".join(
            paragraph(f"{printable(column.name):<{indent}}{printable(text)}", " " * indent)
            for column, (text, _) in zip(table.columns, row, strict=True)
            if text
        )
        for row in table.rows
    )


def _wrapped(text: str, limit: int) -> str:
    """Return a text in lines of at most ``limit`` columns, broken within words where these are longer."""
    shown = printable(text)
    if len(shown) <= limit:
        return shown
    return textwrap.fill(shown, limit, break_on_hyphens=any(len(word) > limit for word in shown.split()))


def _headings(table: Table, widths: Sequence[int]) -> str:
    """Return the line of shared headings; a long one is cut off at the width of its columns."""
    texts, start = [], 0
    for over, count in table.spans:
        width = sum(widths[start : start + count]) + 2 * (count - 1)
        texts.append(printable(over)[:width].center(width))
        start += count
    return "  ".join(texts)
