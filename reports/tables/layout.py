"""Tables as texts, before any format: what ``cispbench table`` shows, for a renderer to escape and mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from cispbench.splits.printable import printable


class Text(NamedTuple):
    """What a table shows in one row and column; ``rank``: 1 best of its column, 2 second, 0 neither."""

    text: str
    rank: int = 0


class Column(NamedTuple):
    """A column: its name, the heading ``over`` it that neighbours share, and whether it is aligned to the right."""

    name: str
    over: str = ""
    right: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of texts below columns; ``rules``: the indices of rows that have a line above them."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Text]]
    rules: frozenset[int] = frozenset()

    @property
    def spans(self) -> list[tuple[str, int]]:
        """The shared headings from left to right, each with its number of columns; empty if no column has one."""
        if not any(column.over for column in self.columns):
            return []
        return [(over, len(list(columns))) for over, columns in groupby(self.columns, lambda column: column.over)]


@dataclass(frozen=True)
class Section:
    """A table with its ``heading``, a line about it, and notes below it; plain texts, none of them escaped."""

    heading: str
    intro: str
    table: Table
    notes: Sequence[str] = ()

    @property
    def all_notes(self) -> list[str]:
        """The notes, and what the marks of best and second mean if there are any."""
        ranked = any(text.rank for row in self.table.rows for text in row)
        return [*self.notes, *(["Bold: the best of a column; underlined: the second."] if ranked else [])]


def plain(texts: Sequence[str]) -> list[Text]:
    """Return a row without ranks."""
    return [Text(text) for text in texts]


def one_line(text: str) -> str:
    """Return a text as one printable line; runs of white space become one space."""
    return printable(" ".join(text.split()))
