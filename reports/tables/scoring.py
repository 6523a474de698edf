"""Read the finished runs of a store and score them under a protocol.

Fast, as a store may hold tens of thousands of records: files are scanned in several processes, and neither a record nor
its counts is kept. All else that shows numbers builds on ``load_runs``.
"""

from __future__ import annotations

import fnmatch
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cispbench.reports.tables.cells import Cell, cells
from cispbench.reports.tables.processes import in_order
from cispbench.reports.tables.runs import Run, ScoredStep, Selection
from cispbench.results.continual import METRICS, Continual, continual_metrics
from cispbench.results.protocols import load_protocol
from cispbench.results.record_fields import has_title
from cispbench.results.scan import scan_finished, scan_record, scan_steps
from cispbench.results.scores import Scores, score
from cispbench.results.store import Store
from cispbench.splits.errors import UsageError, nearest
from cispbench.splits.settings import parse_setting

_LEAST = 100  # runs per process: some tenths of a second, well above what starting a process costs
_UNKNOWN = Continual(*[math.nan] * len(METRICS))


def load_runs(store: Store, protocol: str = "strict", selection: Selection | None = None) -> list[Run]:
    """Return the selected finished runs of a store, scored under a protocol, in the order of their files.

    Runs that a newer one supersedes are among them. Raises UsageError on an unknown protocol or if a store that holds
    finished runs has none of the selection, StoreError naming a file that cannot be read.
    """
    load_protocol(protocol)
    runs = in_order(partial(_load, protocol), store.last_files(), _LEAST)
    # From all runs: the joint run that another is compared with may itself lie outside the selection.
    references = _joint_references(runs)
    return [_with_continual(run, references) for run in _selected(runs, selection or Selection(), store.path)]


def scores_under(run: Run, protocols: Iterable[str]) -> dict[str, Scores]:
    """Return the scores of a run after its last step by protocol; reads the record of that step again, once."""
    counts, setting = scan_record(run.path).counts, parse_setting(run.facts.setting)
    step = None if run.facts.joint else run.facts.step
    return {protocol: score(counts, setting, step, protocol) for protocol in protocols}


def _selected(runs: list[Run], selection: Selection, place: Path) -> list[Run]:
    asked: list[str] = []
    for option, pattern in vars(selection).items():
        if pattern is None or not runs:
            continue
        asked.append(f"--{option} {pattern}")
        names = {_name(run, option) for run in runs}
        whole = f"{pattern}*" if option == "run" else pattern
        runs = [run for run in runs if _fits(run, option, whole)]
        if not runs:
            known = {name[:10] for name in names} if option == "run" else names
            raise UsageError(f"no finished run in {place} has {' '.join(asked)}.", hint=nearest(pattern, known))
    return runs


def _name(run: Run, option: str) -> str:
    return {"method": run.facts.method.title, "setting": run.facts.setting, "run": run.facts.run_key}[option]


def _fits(run: Run, option: str, pattern: str) -> bool:
    name = _name(run, option)
    return has_title(name, pattern) if option == "method" else fnmatch.fnmatchcase(name, pattern)


def _load(protocol: str, paths: Sequence[Path]) -> list[Run]:
    runs = []
    for scanned in scan_finished(paths):
        facts, counted = scanned.facts, scan_steps(scanned)
        setting, steps = parse_setting(facts.setting), []
        for entry in counted:
            # The only step of a joint run counts as the last step of its setting.
            step = None if facts.joint else entry.facts.step
            scores = score(entry.counts, setting, step, protocol)
            steps.append(
                ScoredStep(entry.facts.step, entry.facts.key, scores, entry.cost, entry.facts.execution.devices)
            )
        imported = any(entry.imported for entry in counted)
        runs.append(Run(facts, scanned.path, protocol, steps[-1].scores, tuple(steps), _UNKNOWN, imported))
    return runs


def _with_continual(run: Run, references: dict[tuple[str, ...], tuple[float, ...]]) -> Run:
    if run.facts.joint or not run.complete:
        return replace(run, continual=replace(_UNKNOWN, harmonic=run.scores.harmonic))
    reference = references.get(_reference_key(run))
    scores = [step.scores for step in run.steps]
    return replace(run, continual=continual_metrics(scores, parse_setting(run.facts.setting), reference))


def _joint_references(runs: Iterable[Run]) -> dict[tuple[str, ...], tuple[float, ...]]:
    """Return the IoU by class of the joint run, mean over seeds, by what other runs must share with it.

    Where joint runs differ by more than seeds, none is the reference: nothing says which one would be right.
    """
    found: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells(run for run in runs if run.facts.joint):
        found[_reference_key(cell.runs[0])].append(cell)
    references = {}
    for key, (cell, *others) in found.items():
        if not others:
            by_class = zip(*(run.scores.per_class for run in cell.runs), strict=True)
            references[key] = tuple(statistics.fmean(values) for values in by_class)
    return references


def _reference_key(run: Run) -> tuple[str, ...]:
    facts = run.facts
    weights = facts.model.weights_sha256 or ""
    trained = f"{facts.origin} {run.imported}"  # a submitted joint run is no reference for what was measured here
    return trained, facts.data.kind, facts.data.fingerprint, facts.profile, facts.setting, facts.model.name, weights
