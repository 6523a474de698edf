"""A score compared with a reference: the statuses that it can have, and the comparison with published rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cispbench.reports.tables.cells import Cell, Spread, spread
from cispbench.reports.tables.published import Published
from cispbench.reports.tables.runs import SCORES
from cispbench.reports.tables.scoring import scores_under

Status = Literal["ok", "better", "worse", "missing", "no reference"]
# The worst first: a cell has the worst status of its scores, and the worst cells are shown first.
STATUSES: tuple[Status, ...] = ("worse", "missing", "better", "ok", "no reference")

PROTOCOL = "strict"  # of baselines, and of published rows whose way of counting is not known
# The protocol under which our numbers mean the same as those of a published row, by the row's reading.
READING_PROTOCOL = {"without": "mib20", "both": "plop21", "old-without": "strict"}
FLOOR = 0.5  # points; no tolerance is smaller
PUBLISHED_WIDTH = 2.0  # standard deviations over seeds: a printed number is mostly one run


@dataclass(frozen=True)
class Compared:
    """A score beside its reference, in percent; ``reference`` and ``tolerance`` are NaN where there is none."""

    name: str
    measured: float
    reference: float
    tolerance: float
    status: Status


@dataclass(frozen=True)
class CheckOptions:
    """``floor``: the smallest tolerance in points; ``protocol``: for published rows, None for each row's own."""

    floor: float = FLOOR
    protocol: str | None = None


def compare(name: str, measured: float, reference: float = math.nan, allowed: float = math.nan) -> Compared:
    """Compare a measured score with its reference, if any; ``allowed``: by how many points they may differ."""
    if math.isnan(reference):
        return Compared(name, measured, reference, allowed, "no reference")
    # A score that is undefined, where its reference is not, counts as worse: NaN compares as neither.
    low = math.isnan(measured) or measured < reference - allowed
    status: Status = "worse" if low else "better" if measured > reference + allowed else "ok"
    return Compared(name, measured, reference, allowed, status)


class PublishedComparison(NamedTuple):
    """A score of a cell compared with the number that a published row prints for it, under the row's protocol."""

    compared: Compared
    protocol: str
    published: Published
    cell: Cell


def compare_published(
    cell: Cell, rows: Iterable[Published], options: CheckOptions
) -> dict[str, list[PublishedComparison]]:
    """Compare old, new and all of a cell with every number that the rows print for them.

    Each under the protocol that the row's numbers follow, as far as its own arithmetic tells. Twice the spread over
    seeds is allowed for, and ``floor`` points at least.
    """
    numbers: dict[str, Mapping[str, Spread]] = {cell.runs[0].protocol: cell.numbers}
    found: dict[str, list[PublishedComparison]] = {name: [] for name in SCORES}
    for row in rows:
        protocol = options.protocol or READING_PROTOCOL.get(row.verdict.likely or "", PROTOCOL)
        if protocol not in numbers:
            scores = [scores_under(run, [protocol])[protocol] for run in cell.runs]
            numbers[protocol] = {name: spread([getattr(entry, name) for entry in scores]) for name in SCORES}
        for name in SCORES:
            if row.row[name] is None:
                continue
            measured = numbers[protocol][name]
            allowed = options.floor if math.isnan(measured.std) else max(options.floor, PUBLISHED_WIDTH * measured.std)
            compared = compare(name, measured.mean, float(row.row[name]), allowed)
            found[name].append(PublishedComparison(compared, protocol, row, cell))
    return found
