"""Cells of tables and leaderboards: runs that differ by their seeds alone, with mean and spread of their numbers."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from cispbench.reports.tables.runs import NUMBERS, Group, Run, setting_order


class CellKey(NamedTuple):
    """What the runs of a cell share. ``kind`` of data: full, mini or synthetic; ``order`` of classes: ``a`` natural.

    ``method``: its title, "mib" or "ewf over mib". ``variant``: "" for the recipe that came first, else the digest of
    another recipe, version, weights or data; ``origin``: measured, submitted or predictions; ``imported``: whether the
    runs continue an imported step; ``devices``: on how many devices the steps were trained, each number once.
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
    devices: tuple[int, ...]

    def remark(self, with_origin: bool = True) -> str:
        """Return what distinguishes the cell from others of its method and model, "" if nothing does."""
        origin = self.origin if with_origin and self.origin != "measured" else ""
        variant = f"variant {self.variant}" if self.variant else ""
        imported = "from an imported step" if self.imported else ""
        devices = "" if self.devices == (1,) else f"{' and '.join(map(str, self.devices))} devices"
        return ", ".join(filter(None, (variant, origin, imported, devices)))


class Spread(NamedTuple):
    """A number over seeds: mean and sample standard deviation (NaN for one seed); both NaN if one value is NaN."""

    mean: float
    std: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """Runs that differ by their seeds alone, one per seed, ordered by seed; ``numbers`` holds all of ``NUMBERS``.

    ``setting`` is the canonical name; ``superseded`` counts the runs left out because their seed has a newer run.
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
    def trained_here(self) -> bool:
        """Whether its runs were trained and tested by this benchmark from the first step on."""
        return self.key.origin == "measured" and not self.key.imported

    @property
    def ranked(self) -> bool:
        """Whether it competes for the best of a column."""
        return self.trained_here and not self.joint


Grouped = TypeVar("Grouped", Cell, Run)


def cells(runs: Iterable[Run]) -> list[Cell]:
    """Group runs that differ by their seeds alone into cells; of several runs of one seed the newest counts.

    Ordered by group, method, model, variant and origin, and then as settings are listed.
    """
    usual: dict[tuple[CellKey, str], str] = {}
    found: dict[tuple[CellKey, str], list[Run]] = defaultdict(list)
    # The oldest run first: its recipe is the usual one of its row, and every other recipe is a variant.
    for run in sorted(runs, key=lambda run: run.age):
        key, digest = _key(run), _digest(run)
        variant = "" if digest == usual.setdefault((key, run.facts.setting), digest) else digest
        found[key._replace(variant=variant), run.facts.setting].append(run)
    order = setting_order(setting for _, setting in found)
    made = []
    for (key, setting), members in found.items():
        kept = sorted(latest(members), key=lambda run: run.facts.seed)
        numbers = {name: spread([run.number(name) for run in kept]) for name in NUMBERS}
        made.append(Cell(key, setting, tuple(kept), numbers, superseded=len(members) - len(kept)))
    return sorted(made, key=lambda cell: (cell.group, cell.key[6:], order[cell.setting]))


def latest(runs: Iterable[Run]) -> list[Run]:
    """Return the runs that no newer run of the same seed supersedes.

    A submitted or imported run never supersedes a run that was trained here.
    """
    kept: dict[tuple[object, ...], Run] = {}
    parts: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        parts[run.group, run.facts.origin, run.imported].append(run)
    for run in (run for part in parts.values() for run in sorted(part, key=lambda run: run.age)):
        kept[_key(run), run.facts.setting, run.facts.seed, _digest(run)] = run
    return list(kept.values())


def by_group(found: Iterable[Grouped]) -> dict[Group, list[Grouped]]:
    """Return cells or runs by group, groups sorted: what one table or page may hold together."""
    groups: dict[Group, list[Grouped]] = defaultdict(list)
    for one in found:
        groups[one.group].append(one)
    return {group: groups[group] for group in sorted(groups)}


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
        return Spread(mean, 0.0, known)  # exactly 0: the rounded mean could leave a tiny deviation
    # statistics.stdev computes in fractions: ten times slower, for digits that no report shows.
    return Spread(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1)), known)


def _digest(run: Run) -> str:
    """Return a short digest of what a person can change about a run besides its seed."""
    facts = run.facts
    parts = [facts.recipe, facts.method.version, facts.method.options, facts.model.weights_sha256]
    # Of a method of another package an edit is a change, whatever its version says: it has other keys, too.
    code = [facts.method.code] if "method_package" in facts.environment else []
    content = json.dumps([*parts, facts.data.fingerprint, *code], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:6]


def _key(run: Run) -> CellKey:
    facts = run.facts
    return CellKey(
        facts.dataset, facts.scenario, facts.task, facts.order, facts.data.kind, facts.profile,
        facts.method.title, facts.model.name, "", facts.origin, run.imported, run.devices,
    )  # fmt: skip
