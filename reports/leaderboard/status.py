"""How far a number is to be trusted: reproduced, off by so much, reported only, unverified, or inconsistent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cispbench.reports.check.regression import Compared, Rules, compare_published, published_protocol
from cispbench.reports.tables.aggregate import SCORES, Cell, Spread, spread
from cispbench.reports.tables.published import published
from cispbench.reports.tables.ranking import shown, signed
from cispbench.results.conventions import Verdict
from cispbench.results.ledger import KINDS, find_published_name
from cispbench.results.scan import scan_record
from cispbench.results.scores import score
from cispbench.splits.settings import parse_setting

REPRODUCED, OFF, REPORTED, UNVERIFIED, INCONSISTENT = STATUSES = (
    "reproduced", "off", "reported only", "unverified", "inconsistent",
)  # fmt: skip


class Standing(NamedTuple):
    """How a number stands: one of STATUSES, by how many points it is ``off`` (signed, else ""), and why."""

    status: str
    off: str
    why: str

    @property
    def words(self) -> str:
        """The status in words."""
        return f"off by {self.off}" if self.status == OFF else self.status


NOTHING = Standing("", "", "")  # of a number that is not there


class _Comparison(NamedTuple):
    """A measured score beside a printed one, under the protocol that the printed one follows."""

    compared: Compared
    protocol: str
    source: Mapping[str, Any]
    cell: Cell


class Standings:
    """The standing of every measured and published number, by the rules of ``cispbench check``.

    A measured number is reproduced if it lies within the tolerance of what any row of its method, setting and backbone
    prints for it, of the most direct kind that does; else it is off by its distance from the nearest. What was
    submitted, scored from files, or goes on from an imported step verifies nothing, and is not verified. Runs of
    another recipe than the first (variants) are compared, and verify nothing.
    """

    def __init__(self, cells: Iterable[Cell], rules: Rules | None = None) -> None:
        """Compare the cells of one protocol with the ledger. Raises StoreError on a record or ledger that is broken."""
        self._rules = rules or Rules()
        self._by_cell: dict[tuple[object, str, str], list[_Comparison]] = defaultdict(list)
        self._by_row: dict[tuple[Any, ...], list[_Comparison]] = defaultdict(list)
        for cell in cells:
            if cell.comparable and not _aside(cell) and find_published_name(cell.key.method) is not None:
                self._compare(cell)

    def of_measured(self, cell: Cell, name: str) -> Standing:
        """Return how a cell's ``old``, ``new`` or ``all`` stands."""
        if not cell.comparable:
            return Standing(UNVERIFIED, "", "Not comparable with published numbers.")
        if _aside(cell):
            return Standing(UNVERIFIED, "", f"{_aside(cell)}: nobody has run it again here.")
        found = self._by_cell[cell.key, cell.setting, name]
        if not found:
            return Standing(UNVERIFIED, "", "Nothing is published for this method, backbone and setting.")
        return _standing(found)

    def of_published(self, row: Mapping[str, Any], verdict: Verdict, name: str) -> Standing:
        """Return how a published row's ``old``, ``new`` or ``all`` stands, given the row's verdict."""
        if verdict.label == INCONSISTENT:
            return Standing(INCONSISTENT, "", "Its old, new and all fit no way of counting the background.")
        found = self._by_row[(*row.values(), name)]
        return _standing(found) if found else Standing(REPORTED, "", "No run of this method and backbone here yet.")

    def _compare(self, cell: Cell) -> None:
        rows = [entry for entry in published(cell) if entry.same_backbone]
        numbers: dict[str, Mapping[str, Spread]] = {cell.runs[0].protocol: cell.numbers}
        for name in SCORES:
            printed = [entry for entry in rows if entry.row[name] is not None]
            nearest_kind = min((KINDS.index(entry.row["kind"]) for entry in printed), default=0)
            for entry in printed:
                protocol = published_protocol(entry, self._rules)
                if protocol not in numbers:
                    numbers[protocol] = _rescored(cell, protocol)
                compared = compare_published(name, entry, numbers[protocol][name], self._rules.floor)
                found = _Comparison(compared, protocol, entry.row, cell)
                if KINDS.index(entry.row["kind"]) == nearest_kind:
                    self._by_cell[cell.key, cell.setting, name].append(found)
                if not cell.key.variant:
                    self._by_row[(*entry.row.values(), name)].append(found)


def _aside(cell: Cell) -> str:
    """Return why a cell verifies nothing, "" if it may."""
    origins = {"submitted": "Submitted by somebody", "predictions": "Scored from files of predictions"}
    return origins.get(cell.key.origin, "Goes on from a step that was trained elsewhere" if cell.key.imported else "")


def _rescored(cell: Cell, protocol: str) -> dict[str, Spread]:
    """Return old, new and all of a cell under another protocol, from the last records of its runs."""
    setting, found = parse_setting(cell.setting), []
    for run in cell.runs:
        step = None if run.facts.joint else run.facts.step
        found.append(score(scan_record(run.path).counts, setting, step, protocol))
    return {name: spread([getattr(scores, name) for scores in found]) for name in SCORES}


def _standing(found: Sequence[_Comparison]) -> Standing:
    within = [entry for entry in found if entry.compared.status == "ok"]
    best = min(within or found, key=lambda entry: abs(entry.compared.measured - entry.compared.reference))
    compared, row = best.compared, best.source
    off = signed(compared.measured - compared.reference, 2)
    why = (
        f"Measured {shown(compared.measured, 2)} under {best.protocol} over {len(best.cell.runs)} seeds, "
        f"printed {row[compared.name]} ({row['kind']}, {row['source']}); "
        f"difference {off}, tolerance {shown(compared.tolerance, 2)}."
    )
    return Standing(REPRODUCED, "", why) if within else Standing(OFF, off, why)
