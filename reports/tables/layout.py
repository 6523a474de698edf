"""Tables as texts, before any format: what ``cispbench table`` shows, for a renderer to escape and mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Text(NamedTuple):
    """What a cell of a table shows; ``rank``: 1 best of its column, 2 second, 0 neither."""

    text: str
    rank: int = 0


class Column(NamedTuple):
    """A column's ``name``, and what it and its neighbours are below (``over``, for example the setting)."""

    name: str
    over: str = ""
    right: bool = False

    @property
    def whole(self) -> str:
        """The name with what it is below, on one line."""
        return f"{self.over} {self.name}".strip()


@dataclass(frozen=True)
class Table:
    """Rows of texts below columns; a rule stands above each row whose place is in ``rules``."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Text]]
    rules: frozenset[int] = frozenset()

    @property
    def ranked(self) -> bool:
        """Whether any cell is marked as best or second."""
        return any(cell.rank for row in self.rows for cell in row)

    def spans(self) -> list[tuple[str, int]]:
        """Return what the columns are below, from left to right, each with its number of columns."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.over:
                found[-1] = (column.over, found[-1][1] + 1)
            else:
                found.append((column.over, 1))
        return found


@dataclass(frozen=True)
class Section:
    """A table with its ``heading``, a line of what it shows, and notes below it; texts, none of them escaped."""

    heading: str
    intro: str
    table: Table
    notes: Sequence[str] = field(default=())


def plain(texts: Sequence[str]) -> list[Text]:
    """Return a row in which nothing is ranked."""
    return [Text(text) for text in texts]
