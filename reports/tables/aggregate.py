"""Cells of tables and leaderboards: runs that differ by their seeds alone, scored under a protocol.

``load_runs`` reads a store once (fast: no record is kept, nor its counts), ``cells`` puts runs together, and
``published`` sets a cell's published rows beside it. All else that shows numbers builds on these three.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cispbench.reports.tables.processes import in_order
from cispbench.reports.tables.runs import Group, Selection, comparable, newest, selected, sorted_settings, variants
from cispbench.results.continual import METRICS, Continual, continual_metrics
from cispbench.results.protocols import load_protocol
from cispbench.results.record_fields import StepFacts
from cispbench.results.scan import Cost, Scanned, scan_finished, scan_steps
from cispbench.results.scores import Scores, score
from cispbench.results.store import Store
from cispbench.splits.settings import parse_setting

SCORES = ("old", "new", "all")
NUMBERS = (*SCORES, "pixel_accuracy", *METRICS)
_LEAST = 100  # runs a process, some tenths of a second
_UNKNOWN = Continual(*[math.nan] * len(METRICS))


class Step(NamedTuple):
    """A step of a run, by its number and content key: its scores after it, and what it cost."""

    step: int
    key: str
    scores: Scores
    cost: Cost


@dataclass(frozen=True)
class Run:
    """A finished run under a protocol.

    ``facts``: what the record of its last step, at ``path``, says of it; ``scores``: after the last step, in percent;
    ``steps``: the recorded ones in order (a run that goes on from an imported step may lack the earlier);
    ``continual``: nan where a step is missing, and ``intransigence`` nan without a joint run to compare with;
    ``imported``: one of its steps was trained elsewhere.
    """

    facts: StepFacts
    path: Path
    protocol: str
    scores: Scores
    steps: tuple[Step, ...]
    continual: Continual
    imported: bool

    @property
    def complete(self) -> bool:
        """Whether every step of the run has its record."""
        return len(self.steps) == self.facts.steps

    def number(self, name: str) -> float:
        """Return one of ``NUMBERS`` in percent; nan where unknown or undefined."""
        return float(getattr(self.continual if name in METRICS else self.scores, name))


class CellKey(NamedTuple):
    """What the runs of a cell share. ``kind`` of data: full, mini or synthetic; ``order`` of classes: ``a`` natural.

    ``variant``: "" for the recipe that came first, else the digest of another recipe, version, weights or data;
    ``origin``: measured, submitted or predictions; ``imported``: whether the runs go on from an imported step.
    """

    dataset: str
    scenario: str
    task: str
    order: str
    kind: str
    profile: str
    method: str
    model: str
    variant: str
    origin: str
    imported: bool


class Spread(NamedTuple):
    """A number over seeds: mean and sample standard deviation (nan for fewer than two); both nan if one value is."""

    mean: float
    std: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """Runs that differ by their seeds alone, one a seed, ordered by seed; ``numbers`` holds all of ``NUMBERS``.

    ``setting`` is the canonical name; ``superseded`` counts runs left out, as a newer one of their seed is there.
    """

    key: CellKey
    setting: str
    runs: tuple[Run, ...]
    numbers: dict[str, Spread]
    superseded: int

    @property
    def group(self) -> Group:
        """What a table may hold together: cells of other groups are never ranked with this one."""
        return Group(self.key.kind, self.key.profile, self.key.dataset)

    @property
    def joint(self) -> bool:
        """Whether it is an upper bound, trained on all classes at once: shown, and not ranked."""
        return self.runs[0].facts.joint

    @property
    def ranked(self) -> bool:
        """Whether it competes for the best of a column: trained here from the start, and no upper bound."""
        return not self.joint and not self.key.imported and self.key.origin == "measured"

    @property
    def comparable(self) -> bool:
        """Whether it may stand beside published numbers: full data, the profile of the papers."""
        return comparable(self.key.kind, self.key.profile)


def load_runs(store: Store, protocol: str = "strict", selection: Selection | None = None) -> list[Run]:
    """Return the selected finished runs of a store, scored under a protocol, in the order of their files.

    Runs that a newer one supersedes are among them. Raises UsageError on an unknown protocol or if nothing is selected
    of a store that holds finished runs, StoreError naming a file that cannot be read.
    """
    load_protocol(protocol)
    runs = in_order(partial(_load_all, protocol), store.last_files(), _LEAST)
    chosen = {id(facts) for facts in selected([run.facts for run in runs], selection, store.path)}
    # The joint run that another is held against may itself lie outside the selection.
    references = _joint_references(runs)
    return [_with_continual(run, references) for run in runs if id(run.facts) in chosen]


def cells(runs: Iterable[Run]) -> list[Cell]:
    """Put the runs that differ by their seeds alone together, the newest of each seed.

    Ordered by group, method, model, variant and origin, and then as settings are listed.
    """
    found: dict[tuple[CellKey, str], list[Run]] = defaultdict(list)
    for members in _partitions(runs).values():
        digests = variants([run.facts for run in members])
        for run in members:
            found[_key(run, digests[run.facts.run_key]), run.facts.setting].append(run)
    places = {name: place for place, name in enumerate(sorted_settings({setting for _, setting in found}))}
    made = [_cell(key, setting, members) for (key, setting), members in found.items()]
    return sorted(made, key=lambda cell: (cell.group, cell.key[6:], places[cell.setting]))


def latest(runs: Iterable[Run]) -> list[Run]:
    """Return the runs that no newer one of the same seed supersedes."""
    found = []
    for members in _partitions(runs).values():
        by_facts = {id(run.facts): run for run in members}
        found += [by_facts[id(facts)] for facts in newest([run.facts for run in members])]
    return found


def by_group(made: Iterable[Cell]) -> dict[Group, list[Cell]]:
    """Return cells by group, the order kept: what one table or page may hold together."""
    groups: dict[Group, list[Cell]] = defaultdict(list)
    for cell in made:
        groups[cell.group].append(cell)
    return dict(groups)


def spread(values: Sequence[float]) -> Spread:
    """Return the mean and the sample standard deviation over seeds.

    >>> spread([40.0, 50.0, 60.0])
    Spread(mean=50.0, std=10.0, values=(40.0, 50.0, 60.0))
    """
    known = tuple(values)
    if not known or any(map(math.isnan, known)):
        return Spread(math.nan, math.nan, known)
    mean = statistics.fmean(known)
    if len(known) == 1:
        return Spread(mean, math.nan, known)
    if min(known) == max(known):
        return Spread(mean, 0.0, known)
    # statistics.stdev reckons in fractions, ten times slower, for digits that no report shows.
    return Spread(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1)), known)


def _load_all(protocol: str, paths: Sequence[Path]) -> list[Run]:
    return [_load(scanned, protocol) for scanned in scan_finished(paths)]


def _load(scanned: Scanned, protocol: str) -> Run:
    facts = scanned.facts
    setting = parse_setting(facts.setting)
    counted = scan_steps(scanned)
    steps = []
    for entry in counted:
        step = entry.facts.step
        # A joint run's only step is the last one, whatever steps its setting has.
        scores = score(entry.counts, setting, None if facts.joint else step, protocol)
        steps.append(Step(step, entry.facts.key, scores, entry.cost))
    imported = any(entry.imported for entry in counted)
    return Run(facts, scanned.path, protocol, steps[-1].scores, tuple(steps), _UNKNOWN, imported)


def _with_continual(run: Run, references: dict[tuple[str, ...], tuple[float, ...]]) -> Run:
    if run.facts.joint or not run.complete:
        return replace(run, continual=replace(_UNKNOWN, harmonic=run.scores.harmonic))
    reference = references.get(_reference_key(run))
    scores = [step.scores for step in run.steps]
    return replace(run, continual=continual_metrics(scores, parse_setting(run.facts.setting), reference))


def _joint_references(runs: Iterable[Run]) -> dict[tuple[str, ...], tuple[float, ...]]:
    """Return, by what a run shares with it, the mean over seeds of the IoU by class of the joint run.

    Where joint runs differ by more than seeds, none is the reference.
    """
    found: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells(run for run in runs if run.facts.joint):
        found[_reference_key(cell.runs[0])].append(cell)
    return {key: _mean_iou(only) for key, (only, *others) in found.items() if not others}


def _mean_iou(cell: Cell) -> tuple[float, ...]:
    by_class = zip(*(run.scores.per_class for run in cell.runs), strict=True)
    return tuple(statistics.fmean(values) for values in by_class)


def _reference_key(run: Run) -> tuple[str, ...]:
    facts = run.facts
    weights = facts.model.weights_sha256 or ""
    trained = f"{facts.origin} {run.imported}"  # a stranger's joint run is no reference for what was measured here
    return trained, facts.data.kind, facts.data.fingerprint, facts.profile, facts.setting, facts.model.name, weights


def _partitions(runs: Iterable[Run]) -> dict[tuple[Group, str, bool], list[Run]]:
    """Return the runs by group, origin and import: never taken for seeds of each other, nor for newer runs."""
    found: dict[tuple[Group, str, bool], list[Run]] = defaultdict(list)
    for run in runs:
        facts = run.facts
        found[Group(facts.data.kind, facts.profile, facts.dataset), facts.origin, run.imported].append(run)
    return found


def _key(run: Run, variant: str) -> CellKey:
    facts = run.facts
    return CellKey(
        facts.dataset, facts.scenario, facts.task, facts.order, facts.data.kind, facts.profile,
        facts.method.name, facts.model.name, variant, facts.origin, run.imported,
    )  # fmt: skip


def _cell(key: CellKey, setting: str, members: Sequence[Run]) -> Cell:
    kept = sorted(latest(members), key=lambda run: run.facts.seed)
    numbers = {name: spread([run.number(name) for run in kept]) for name in NUMBERS}
    return Cell(key, setting, tuple(kept), numbers, len(members) - len(kept))
