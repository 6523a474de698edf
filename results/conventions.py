"""Infer whether published numbers count the background, where a row's own arithmetic allows several readings.

``lint_row`` finds the readings that fit a row's old, new and all. Rows of one table count in one way, its convention:
where several readings fit a row, the convention of its table is the likely one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cispbench.results.documents import in_runners_document
from cispbench.results.ledger import READINGS, lint_row, readings

Table = tuple[str, str]


@dataclass(frozen=True)
class Verdict:
    """The readings of a row that are possible, and the one that is likely.

    ``label``: as ``lint_row`` returns it. ``readings``: all that fit. ``likely``: the only one that fits; else the
    convention of its table (``inferred`` is then true); None where that does not decide, or a number is missing.
    """

    label: str
    readings: tuple[str, ...]
    likely: str | None
    inferred: bool

    @property
    def ambiguous(self) -> bool:
        """Whether several readings fit."""
        return len(self.readings) > 1


def table_of(row: Mapping[str, Any]) -> Table:
    """Return the table of a row: all results that its source ran, or all that it copied for one method.

    A source counts its own runs in one way. Numbers that it copies were counted in the way of their own source.
    """
    return row["source"], "" if in_runners_document(row["document"], row["run_by"]) else row["method"]


def conventions(rows: Sequence[Mapping[str, Any]]) -> dict[Table, str | None]:
    """Return the convention of every table: the reading that fits most of its complete rows, None where none leads.

    It has to fit more rows than each other reading does, and more than half of them.
    """
    complete: dict[Table, list[tuple[str, ...]]] = defaultdict(list)
    for row in rows:
        # A table of incomplete rows alone has a convention, too: None.
        found = complete[table_of(row)]
        if lint_row(row) != "incomplete":
            found.append(readings(row))
    return {table: _leading(fitting) for table, fitting in complete.items()}


def judge(rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Return a verdict for each row; ``rows`` must be the whole ledger, or tables that are whole."""
    kept = conventions(rows)
    return [_verdict(row, kept[table_of(row)]) for row in rows]


def _leading(fitting: Sequence[tuple[str, ...]]) -> str | None:
    counts = {name: sum(name in names for names in fitting) for name in READINGS}
    most = max(counts.values())
    leading = [name for name, count in counts.items() if count == most]
    return leading[0] if len(leading) == 1 and 2 * most > len(fitting) else None


def _verdict(row: Mapping[str, Any], convention: str | None) -> Verdict:
    label, fitting = lint_row(row), readings(row)
    if label == "incomplete":
        return Verdict(label, (), None, False)
    if len(fitting) == 1:
        return Verdict(label, fitting, label, False)
    # An inconsistent row is likely its table's reading with a slip; an ambiguous one must allow for it.
    likely = convention if not fitting or convention in fitting else None
    return Verdict(label, fitting, likely, likely is not None)
