"""Whether numbers have moved: measured cells held against baselines, or on full data against published numbers."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cispbench.reports.tables.aggregate import SCORES, Cell, Spread, cells, load_runs
from cispbench.reports.tables.published import Published, closest
from cispbench.reports.tables.runs import Selection
from cispbench.results.baselines_files import BaselineCell, Baselines, Figure
from cispbench.results.protocols import load_protocol
from cispbench.results.store import Store
from cispbench.results.submission_text import content_digest
from cispbench.splits.errors import StoreError

Status = Literal["ok", "better", "worse", "missing", "no reference"]

PROTOCOL = "strict"  # of baselines, and of published rows whose way of counting is not known
# By which protocol our counts become what a published row's numbers are the means of.
READING_PROTOCOL = {"without": "mib20", "both": "plop21", "old-without": "strict"}
FLOOR = 0.5  # points that no check is stricter than
WIDTH = 3.0  # standard errors of the difference of two means
PUBLISHED_WIDTH = 2.0  # standard deviations over seeds: a printed number is mostly one run
# The worst first: what of a row's scores decides, and how rows are shown.
STATUSES: tuple[Status, ...] = ("worse", "missing", "better", "ok", "no reference")


@dataclass(frozen=True)
class Compared:
    """A score beside its reference, in percent; ``reference`` and ``tolerance`` are nan where there is none."""

    name: str
    measured: float
    reference: float
    tolerance: float
    status: Status


@dataclass(frozen=True)
class Row:
    """A cell of the check: what was measured over how many seeds, against what, and how it stands."""

    kind: str
    profile: str
    dataset: str
    setting: str
    method: str
    model: str
    variant: str
    seeds: tuple[int, ...]
    against: str
    compared: tuple[Compared, ...]
    status: Status
    note: str


@dataclass(frozen=True)
class Rules:
    """``floor``: the least tolerance in points; ``protocol``: for published rows, None for each row's own."""

    floor: float = FLOOR
    protocol: str | None = None


@dataclass(frozen=True)
class Check:
    """The rows of a check; ``left_out``: cells that somebody submitted, scored from files, or trained elsewhere."""

    rows: tuple[Row, ...]
    left_out: int

    def count(self, status: Status) -> int:
        """Return how many rows stand so."""
        return sum(row.status == status for row in self.rows)


def check_store(
    store: Store, baselines: Sequence[Baselines], selection: Selection | None = None, rules: Rules | None = None
) -> Check:
    """Compare the selected finished runs that were measured here, and say which baselines no run was found for.

    Raises StoreError for a store without finished runs or baselines of another version of the protocol, UsageError if
    nothing is selected.
    """
    chosen, rules = selection or Selection(), rules or Rules()
    made = measured_cells(store, chosen)
    by_protocol = {name: _by_place(store, chosen, name) for name in _protocols(made.cells, rules)}
    rows = [_published_row(cell, by_protocol, rules) for cell in made.cells if cell.comparable]
    for group in baselines:
        _check_protocol(group)
    figures = {
        (group.kind, group.profile, *cell.identity): (group, cell) for group in baselines for cell in group.cells
    }
    compared = [cell for cell in made.cells if not cell.comparable]
    rows += [_baseline_row(cell, figures, rules) for cell in compared]
    rows += _missing(figures, {_place(cell) for cell in compared}, chosen)
    return Check(tuple(rows), made.left_out)


@dataclass(frozen=True)
class Measured:
    """Cells measured here, and how many others the store holds."""

    cells: tuple[Cell, ...]
    left_out: int


def measured_cells(store: Store, selection: Selection, protocol: str = PROTOCOL) -> Measured:
    """Return the selected cells whose runs were trained and tested here. Raises StoreError if there is no run."""
    runs = load_runs(store, protocol, selection)
    if not runs:
        raise StoreError(f"{store.path} holds no finished run.", hint="Name the folder that --out of the runs named.")
    found = cells(runs)
    own = tuple(cell for cell in found if cell.key.origin == "measured" and not cell.key.imported)
    return Measured(own, len(found) - len(own))


def recipe_digest(cell: Cell) -> str:
    """Return the digest of all that a cell's recipe says but for the method's own options."""
    recipe = {name: value for name, value in cell.runs[0].facts.recipe.items() if name != "method"}
    return content_digest(recipe)[:12]


def data_fingerprint(cell: Cell) -> str | None:
    """Return the fingerprint of real data. Scenes are drawn, and a rounding of the processor's may show in theirs."""
    return None if cell.key.kind == "synthetic" else cell.runs[0].facts.data.fingerprint


def tolerance(figure: Figure, seeds: int, measured: Spread, machine: float, floor: float) -> float:
    """Return by how many points the mean over the measured seeds may differ from a baseline's mean over ``seeds``.

    Three standard errors of the difference, by the baseline's spread over seeds (by that of the measured ones where
    it has a single seed), and what another processor may do; ``floor`` at least.
    """
    spread = figure.spread if figure.spread is not None else measured.std
    error = 0.0 if math.isnan(spread) else spread * math.sqrt(1 / seeds + 1 / len(measured.values))
    return max(floor, machine + WIDTH * error)


def _place(cell: Cell) -> tuple[str | None, ...]:
    key = cell.key
    recipe, data = recipe_digest(cell), data_fingerprint(cell)
    return key.kind, key.profile, key.dataset, cell.setting, key.method, key.model, recipe, data


def _baseline_row(
    cell: Cell, figures: Mapping[tuple[str | None, ...], tuple[Baselines, BaselineCell]], rules: Rules
) -> Row:
    found = figures.get(_place(cell))
    if found is None:
        note = "another recipe than the baseline's" if _place(cell)[:-2] in {place[:-2] for place in figures} else ""
        compared = [Compared(name, cell.numbers[name].mean, math.nan, math.nan, "no reference") for name in SCORES]
        return _row(cell, "-", compared, note)
    group, baseline = found
    compared = []
    for name in SCORES:
        figure, numbers = getattr(baseline, name), cell.numbers[name]
        if figure is None:
            compared.append(Compared(name, numbers.mean, math.nan, math.nan, "no reference"))
            continue
        allowed = tolerance(figure, len(baseline.seeds), numbers, group.machine, rules.floor)
        compared.append(_compared(name, numbers.mean, figure.mean, allowed))
    return _row(cell, f"baseline of {len(baseline.seeds)} seeds", compared, "")


def _compared(name: str, measured: float, reference: float, allowed: float) -> Compared:
    """A score that is undefined, where its reference is not, is worse than any."""
    low = math.isnan(measured) or measured < reference - allowed
    status: Status = "worse" if low else "better" if measured > reference + allowed else "ok"
    return Compared(name, measured, reference, allowed, status)


def _row(cell: Cell, against: str, compared: Sequence[Compared], note: str) -> Row:
    key, seeds = cell.key, tuple(run.facts.seed for run in cell.runs)
    return Row(
        key.kind, key.profile, key.dataset, cell.setting, key.method, key.model, key.variant, seeds, against,
        tuple(compared), _worst(entry.status for entry in compared), note,
    )  # fmt: skip


def _worst(statuses: Iterable[Status]) -> Status:
    return min(statuses, key=STATUSES.index)


def _missing(
    figures: Mapping[tuple[str | None, ...], tuple[Baselines, BaselineCell]],
    there: set[tuple[str | None, ...]],
    selection: Selection,
) -> list[Row]:
    rows = []
    for place, (group, cell) in figures.items():
        if place in there or not _selected(cell, selection):
            continue
        known = {name: getattr(cell, name) for name in SCORES}
        compared = tuple(
            Compared(name, math.nan, figure.mean if figure else math.nan, math.nan, "missing")
            for name, figure in known.items()
        )
        rows.append(
            Row(group.kind, group.profile, cell.dataset, cell.setting, cell.method, cell.model, "", (),
                f"baseline of {len(cell.seeds)} seeds", compared, "missing", "no run of its recipe")
        )  # fmt: skip
    return rows


def _selected(cell: BaselineCell, selection: Selection) -> bool:
    asked = ((cell.method, selection.method), (cell.setting, selection.setting))
    return all(pattern is None or fnmatch.fnmatchcase(name, pattern) for name, pattern in asked)


def _check_protocol(group: Baselines) -> None:
    rules = load_protocol(PROTOCOL)
    if group.protocol != f"{rules.name} v{rules.version}":
        raise StoreError(
            f"the baselines of {group.kind} data, profile {group.profile}, are of the protocol {group.protocol}, "
            f"and scores are now of {rules.name} v{rules.version}.",
            hint="Make them anew by --update.",
        )


def _protocols(made: Sequence[Cell], rules: Rules) -> list[str]:
    """Return the protocols that published rows ask for; none without a cell that may stand beside them."""
    if not any(cell.comparable for cell in made):
        return []
    return [rules.protocol] if rules.protocol else sorted({PROTOCOL, *READING_PROTOCOL.values()})


def _by_place(store: Store, selection: Selection, protocol: str) -> dict[tuple[object, str], Cell]:
    return {(cell.key, cell.setting): cell for cell in measured_cells(store, selection, protocol).cells}


def published_protocol(row: Published, rules: Rules) -> str:
    """Return the protocol under which a measured cell is held against a published row: the one its numbers follow."""
    return rules.protocol or READING_PROTOCOL.get(row.verdict.likely or "", PROTOCOL)


def compare_published(name: str, row: Published, measured: Spread, floor: float) -> Compared:
    """Compare a score, measured under ``published_protocol``, with the number that the row prints for it.

    A difference is allowed for by the spread over seeds, and by ``floor`` points at least.
    """
    allowed = floor if math.isnan(measured.std) else max(floor, PUBLISHED_WIDTH * measured.std)
    return _compared(name, measured.mean, float(row.row[name]), allowed)


def _published_row(cell: Cell, scored: Mapping[str, Mapping[tuple[object, str], Cell]], rules: Rules) -> Row:
    """Compare each score with every row of the most direct kind, each under the protocol that its numbers follow."""
    rows = closest(cell)
    compared = []
    for name in SCORES:
        found = []
        for row in (row for row in rows if row.row[name] is not None):
            numbers = scored[published_protocol(row, rules)][cell.key, cell.setting].numbers
            found.append(compare_published(name, row, numbers[name], rules.floor))
        compared.append(_nearest(found, name, cell))
    against = f"{rows[0].row['kind']}, {len(rows)} source{'s' if len(rows) > 1 else ''}" if rows else "-"
    return _row(cell, against, compared, "" if rows else "nothing published on this backbone")


def _nearest(found: Sequence[Compared], name: str, cell: Cell) -> Compared:
    """Return the nearest of a score's printed numbers; one between two that differ is neither better nor worse."""
    if not found:
        return Compared(name, cell.numbers[name].mean, math.nan, math.nan, "no reference")
    best = min(found, key=lambda entry: abs(entry.measured - entry.reference))
    statuses = {entry.status for entry in found}
    status: Status = best.status if len(statuses) == 1 else "ok"
    return Compared(name, best.measured, best.reference, best.tolerance, status)
