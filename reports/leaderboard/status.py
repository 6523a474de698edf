"""How far a number can be trusted: measured again here, run again by others, published only, or inconsistent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from cispbench.reports.check.comparison import CheckOptions, PublishedComparison, compare_published
from cispbench.reports.leaderboard.background import UNKNOWN, background_mark, published_background
from cispbench.reports.tables.cells import Cell
from cispbench.reports.tables.numbers import number_text, signed
from cispbench.reports.tables.published import is_inferred, published, verdicts
from cispbench.results.conventions import Verdict
from cispbench.results.documents import OWN, QUOTED
from cispbench.results.documents import RERUN as RERUN_KIND
from cispbench.results.ledger import find_published_name, ledger_rows

REPRODUCED, OFF, RERUN, REPORTED, UNVERIFIED, INCONSISTENT = STATUSES = (
    "reproduced", "off", "re-run by others", "published only", "unverified", "inconsistent",
)  # fmt: skip
_NOT_RUN_HERE = {"submitted": "Submitted by somebody", "predictions": "Scored from files of predictions"}


class Standing(NamedTuple):
    """The status of a number: one of STATUSES, and why.

    ``off``: the signed differences in points, measured here (one) or run by others (one or several) minus published.
    ``mixed``: the numbers that were subtracted are not all known to count the background in one way.
    """

    status: str
    off: str
    why: str
    mixed: bool = False

    @property
    def points(self) -> str:
        """The differences as shown, with the mark of what is not known of them."""
        return f"{self.off} {UNKNOWN}" if self.mixed else self.off

    @property
    def words(self) -> str:
        """The status in words."""
        if self.status == OFF:
            return f"off by {self.off}"
        return f"{self.status}: {self.points}" if self.off else self.status


NOTHING = Standing("", "", "")  # of a number that is not there


class Standings:
    """The standing of every measured and published number, by the rules of ``cispbench check``.

    A measured number is reproduced if it lies within the tolerance of any number that is printed for its method,
    setting and backbone. Only printed numbers of the most direct kind count: the authors' own, else quoted, else run by
    others. If none is near enough, it is off by its distance from the nearest. What nobody has measured here may have
    been run again by others: their numbers are compared with the authors' where both count the background in one way.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        """Compare the cells of one protocol with the ledger. Raises StoreError on a record or ledger that is broken."""
        self._by_cell: dict[tuple[object, str, str], list[PublishedComparison]] = defaultdict(list)
        self._by_row: dict[tuple[Any, ...], list[PublishedComparison]] = defaultdict(list)
        self._reruns: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
        for row in ledger_rows():
            if row["kind"] == RERUN_KIND:
                self._reruns[_subject(row)].append(row)
        for cell in cells:
            # Nobody has run again what was submitted or scored from files, so it verifies no published number. The same
            # holds for runs that continue a step trained by other code: a part of their score is not ours.
            if cell.group.comparable and cell.trained_here and find_published_name(cell.key.method) is not None:
                self._compare(cell)

    def of_measured(self, cell: Cell, name: str) -> Standing:
        """Return the standing of a cell's ``old``, ``new`` or ``all``."""
        if not cell.group.comparable:
            return Standing(UNVERIFIED, "", "Not comparable with published numbers.")
        if not cell.trained_here:
            why = _NOT_RUN_HERE.get(cell.key.origin, "Goes on from a step that was trained elsewhere")
            return Standing(UNVERIFIED, "", f"{why}: nobody has run it again here.")
        found = self._by_cell[cell.key, cell.setting, name]
        if not found:
            return Standing(UNVERIFIED, "", "Nothing is published for this method, backbone and setting.")
        return _standing(found)

    def of_published(self, row: Mapping[str, Any], verdict: Verdict, name: str) -> Standing:
        """Return the standing of a published row's ``old``, ``new`` or ``all``, given the row's verdict."""
        if verdict.label == INCONSISTENT:
            return Standing(INCONSISTENT, "", "Its old, new and all fit no way of counting the background.")
        found = self._by_row[(*row.values(), name)]
        if found:
            return _standing(found)
        others = [other for other in self._reruns[_subject(row)] if other[name] is not None]
        if others and row["kind"] in (OWN, QUOTED):
            return _rerun(row, others, verdict, name)
        return Standing(REPORTED, "", "No run of this method and network here yet.")

    def _compare(self, cell: Cell) -> None:
        rows = [entry for entry in published(cell) if entry.same_backbone]  # the most direct kind first
        for name, found in compare_published(cell, rows, CheckOptions()).items():
            for entry in found:
                if entry.published.row["kind"] == found[0].published.row["kind"]:
                    self._by_cell[cell.key, cell.setting, name].append(entry)
                # A variant (another recipe than the usual one) is compared itself, but proves nothing about a paper.
                if not cell.key.variant:
                    self._by_row[(*entry.published.row.values(), name)].append(entry)


def _subject(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["setting"], row["method"], row["backbone"]


def _rerun(row: Mapping[str, Any], others: Sequence[Mapping[str, Any]], verdict: Verdict, name: str) -> Standing:
    """Return the standing of a published number that others have run again, with the same network."""
    counted, differences, told = published_background(verdict, name), [], []
    # Where the published number is marked as not known itself, that one mark tells it of all differences.
    ways: set[bool | None] = set() if counted is None else {counted}
    for other in others:
        judged = verdicts()[tuple(other.values())]
        theirs = published_background(judged, name)
        where = f"{other['source']}{', its setting inferred' if is_inferred(other) else ''}"
        text = f"{other['run_by']} ran it: {other[name]} ({background_mark(theirs)}, {where})"
        if judged.label == INCONSISTENT:
            told.append(f"{text}, not compared: old, new and all of that row contradict each other.")
            continue
        if None not in (counted, theirs) and counted != theirs:
            told.append(f"{text}, not compared: it counts the background otherwise.")
            continue
        ways.add(theirs)
        differences.append(_printed_difference(other[name], row[name]))
        told.append(f"{text}, difference {differences[-1]}.")
    mixed = bool(differences) and len(ways) > 1
    if mixed:
        told.append("These numbers are not all known to count the background in one way.")
    mine = f"Published {row[name]} ({background_mark(counted)})."
    return Standing(RERUN, ", ".join(differences), " ".join([mine, *told]), mixed)


def _printed_difference(number: float, reference: float) -> str:
    """Return the difference of two printed numbers, with as many decimals as they have."""
    difference = Decimal(str(number)) - Decimal(str(reference))
    return signed(float(difference), max(1, -int(difference.as_tuple().exponent)))


def _standing(found: Sequence[PublishedComparison]) -> Standing:
    within = [entry for entry in found if entry.compared.status == "ok"]
    best = min(within or found, key=lambda entry: abs(entry.compared.measured - entry.compared.reference))
    compared, row = best.compared, best.published.row
    off = signed(compared.measured - compared.reference, 2)
    seeds = f"{len(best.cell.runs)} seed{'s' if len(best.cell.runs) > 1 else ''}"
    why = (
        f"Measured {number_text(compared.measured, 2)} under {best.protocol} over {seeds}, "
        f"printed {row[compared.name]} ({row['kind']}, {row['source']}); "
        f"difference {off}, tolerance {number_text(compared.tolerance, 2)}."
    )
    return Standing(REPRODUCED, "", why) if within else Standing(OFF, off, why)
