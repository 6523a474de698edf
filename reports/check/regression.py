"""Whether numbers have changed: measured cells are compared with baselines, or on full data with published numbers."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cispbench.reports.check.comparison import (
    PROTOCOL,
    STATUSES,
    CheckOptions,
    Compared,
    Status,
    compare,
    compare_published,
)
from cispbench.reports.tables.cells import Cell, Spread, cells
from cispbench.reports.tables.published import closest
from cispbench.reports.tables.runs import SCORES, Selection
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.baselines_files import BaselineCell, Baselines, Figure
from cispbench.results.protocols import load_protocol
from cispbench.results.record_fields import has_title
from cispbench.results.store import Store
from cispbench.results.submission_text import content_digest
from cispbench.splits.errors import StoreError

Identity = tuple[str | None, ...]
BaselineCells = Mapping[Identity, tuple[Baselines, BaselineCell]]

WIDTH = 3.0  # standard errors of the difference of two means


@dataclass(frozen=True)
class CheckedCell:
    """A cell of the check: its seeds, what it was compared ``against``, and its status."""

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
    note: str

    @property
    def status(self) -> Status:
        """The worst status of its scores."""
        return min((score.status for score in self.compared), key=STATUSES.index)


@dataclass(frozen=True)
class CheckResult:
    """The cells of a check; ``left_out``: how many were submitted, scored from files, or trained by other code."""

    cells: tuple[CheckedCell, ...]
    left_out: int

    def count(self, status: Status) -> int:
        """Return how many cells have this status."""
        return sum(cell.status == status for cell in self.cells)

    @property
    def compared(self) -> int:
        """How many cells have a measured number and a reference for it."""
        return sum(self.count(status) for status in ("worse", "better", "ok"))


def check_store(
    store: Store, baselines: Sequence[Baselines], selection: Selection | None = None,
    options: CheckOptions | None = None,
) -> CheckResult:  # fmt: skip
    """Compare the selected finished runs that were measured here, and list the baselines without a measured run.

    Raises StoreError for baselines of another version of the protocol, UsageError if nothing is selected of a store
    that holds finished runs.
    """
    selection, options = selection or Selection(), options or CheckOptions()
    measured, left_out = measured_cells(store, selection)
    rules = load_protocol(PROTOCOL)
    for group in baselines:
        if group.protocol != f"{rules.name} v{rules.version}":
            raise StoreError(
                f"the baselines of {group.kind} data, profile {group.profile}, are of the protocol {group.protocol}, "
                f"and scores are now of {rules.name} v{rules.version}.",
                hint="Make them anew by --update.",
            )
    references = {
        (group.kind, group.profile, *cell.identity): (group, cell) for group in baselines for cell in group.cells
    }
    small = {_identity(cell) for cell in measured if not cell.group.comparable}
    checked = [_against_published(cell, options) for cell in measured if cell.group.comparable]
    checked += [_against_baseline(cell, references, options.floor) for cell in measured if not cell.group.comparable]
    for identity, (group, cell) in references.items():
        named = has_title(cell.method, selection.method or "*")
        if identity not in small and named and fnmatch.fnmatchcase(cell.setting, selection.setting or "*"):
            checked.append(_missing(group, cell))
    return CheckResult(tuple(checked), left_out)


def measured_cells(store: Store, selection: Selection) -> tuple[list[Cell], int]:
    """Return the selected cells trained and tested here, and the number of others."""
    found = cells(load_runs(store, PROTOCOL, selection))
    own = [cell for cell in found if cell.trained_here]
    return own, len(found) - len(own)


def recipe_digest(cell: Cell) -> str:
    """Return the digest of a cell's recipe without the method's own options.

    So a method with a part switched off is compared with its baseline; under another recipe it is another experiment.
    """
    recipe = {name: value for name, value in cell.runs[0].facts.recipe.items() if name != "method"}
    return content_digest(recipe)[:12]


def data_fingerprint(cell: Cell) -> str | None:
    """Return the fingerprint of real data, None for synthetic scenes.

    Scenes are drawn on the machine itself: the rounding of its processor may change their fingerprint.
    """
    return None if cell.key.kind == "synthetic" else cell.runs[0].facts.data.fingerprint


def tolerance(figure: Figure, seeds: int, measured: Spread, machine: float, floor: float) -> float:
    """Return by how many points the mean over the measured seeds may differ from a baseline's mean over ``seeds``.

    Three standard errors of the difference, by the baseline's spread over seeds (by that of the measured ones where
    it has a single seed), plus the effect of another processor (``machine``); at least ``floor``.
    """
    spread = figure.spread if figure.spread is not None else measured.std
    error = 0.0 if math.isnan(spread) else spread * math.sqrt(1 / seeds + 1 / len(measured.values))
    return max(floor, machine + WIDTH * error)


def _identity(cell: Cell) -> Identity:
    """Return what a baseline must share with a cell to be compared with it."""
    key = cell.key
    recipe, data = recipe_digest(cell), data_fingerprint(cell)
    return key.kind, key.profile, key.dataset, cell.setting, key.method, key.model, recipe, data


def _against_baseline(cell: Cell, references: BaselineCells, floor: float) -> CheckedCell:
    identity = _identity(cell)
    if identity not in references:
        known = {other[:-2] for other in references}  # without recipe and data
        note = "another recipe than the baseline's" if identity[:-2] in known else ""
        return _checked(cell, "-", [compare(name, cell.numbers[name].mean) for name in SCORES], note)
    group, baseline = references[identity]
    compared = []
    for name in SCORES:
        figure: Figure | None = getattr(baseline, name)
        numbers = cell.numbers[name]
        if figure is None:
            compared.append(compare(name, numbers.mean))
        else:
            allowed = tolerance(figure, len(baseline.seeds), numbers, group.machine, floor)
            compared.append(compare(name, numbers.mean, figure.mean, allowed))
    return _checked(cell, _baseline_words(baseline), compared, "")


def _against_published(cell: Cell, options: CheckOptions) -> CheckedCell:
    rows, compared = closest(cell), []
    for name, found in compare_published(cell, rows, options).items():
        scores = [entry.compared for entry in found] or [compare(name, cell.numbers[name].mean)]
        nearest = min(scores, key=lambda score: abs(score.measured - score.reference))
        # A score between two printed numbers that differ is neither better nor worse.
        compared.append(nearest if len({score.status for score in scores}) == 1 else replace(nearest, status="ok"))
    if not rows:
        return _checked(cell, "-", compared, "nothing published on this backbone")
    return _checked(
        cell, f"published ({rows[0].row['kind']}), {len(rows)} source{'s' if len(rows) > 1 else ''}", compared, ""
    )


def _checked(cell: Cell, against: str, compared: Sequence[Compared], note: str) -> CheckedCell:
    key, seeds = cell.key, tuple(run.facts.seed for run in cell.runs)
    return CheckedCell(
        key.kind, key.profile, key.dataset, cell.setting, key.method, key.model, key.variant, seeds, against,
        tuple(compared), note,
    )  # fmt: skip


def _missing(group: Baselines, cell: BaselineCell) -> CheckedCell:
    compared = []
    for name in SCORES:
        figure: Figure | None = getattr(cell, name)
        compared.append(Compared(name, math.nan, figure.mean if figure else math.nan, math.nan, "missing"))
    return CheckedCell(
        group.kind, group.profile, cell.dataset, cell.setting, cell.method, cell.model, "", (),
        _baseline_words(cell), tuple(compared), "no run of its recipe",
    )  # fmt: skip


def _baseline_words(cell: BaselineCell) -> str:
    return f"baseline of {len(cell.seeds)} seed{'s' if len(cell.seeds) > 1 else ''}"
