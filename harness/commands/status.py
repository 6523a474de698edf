"""How sweeps and runs stand, told by the two stores alone: no recipe, data or other process is asked."""

from __future__ import annotations

import fnmatch
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from cispbench.harness.machine.locks import current_holder
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.sweep.matrix import PAPER_TABLE, SweepRequest
from cispbench.harness.sweep.slurm.notes import Place, SlurmNotes
from cispbench.results.record import StepRecord
from cispbench.results.store import Store
from cispbench.splits.settings import paper_table, parse_setting


@dataclass(frozen=True)
class RunStatus:
    """A run of which at least one step is recorded."""

    method: str
    setting: str
    seed: int
    profile: str
    model: str
    data: str
    recorded: int
    steps: int
    newest: str
    run_key: str


@dataclass(frozen=True)
class Running:
    """A step that a process is at work on: what it says of itself, its id, and since when (UTC)."""

    key: str
    what: str
    pid: int
    since: str


@dataclass(frozen=True)
class OnCluster:
    """A step that a job of a cluster was submitted for, and what the job has said last of it.

    ``state``: submitted (it has said nothing yet), running, requeued or failed; ``at``: when it said so (UTC).
    """

    key: str
    what: str
    job: str
    state: str
    iteration: int
    iterations: int
    at: str


@dataclass(frozen=True)
class Status:
    """``published`` counts the trained steps of the step store, ``unrecorded`` those that no record names."""

    runs: tuple[RunStatus, ...]
    running: tuple[Running, ...]
    cluster: tuple[OnCluster, ...]
    published: int
    unrecorded: int

    def as_json(self) -> str:
        """Return the status for scripts."""
        return json.dumps(asdict(self))

    def as_text(self) -> str:
        """Return the status as Markdown tables."""
        parts = []
        for rows in (self.running, self.cluster, self.runs):
            if rows:
                parts += [_table(rows), ""]
        finished = sum(run.recorded == run.steps for run in self.runs)
        unrecorded = f" ({self.unrecorded} of them in no record here)" if self.unrecorded else ""
        at_work = f"{len(self.running)} steps being worked on{self._on_cluster()}"
        parts.append(
            f"{at_work}; {finished} of {len(self.runs)} runs finished; "
            f"{self.published} trained steps in the step store{unrecorded}."
        )
        return "\n".join(parts)

    def _on_cluster(self) -> str:
        left = sum(entry.state != "failed" for entry in self.cluster)
        return f"; {left} steps with jobs of a cluster, as they were last heard of" if self.cluster else ""


def read_status(records: Store, steps: StepStore, request: SweepRequest) -> Status:
    """Read both stores; ``request`` selects runs (what it leaves open selects all). Raises StoreError."""
    everything = records.records()
    by_run: dict[str, list[StepRecord]] = defaultdict(list)
    for record in everything:
        if _selected(record, request):
            by_run[record.run_key].append(record)
    published = steps.published()
    recorded = {record.key for record in everything}
    return Status(
        tuple(_run_status(entries) for entries in by_run.values()), tuple(_running(steps)),
        tuple(_on_cluster(steps)), len(published), sum(key not in recorded for key in published),
    )  # fmt: skip


def _run_status(records: list[StepRecord]) -> RunStatus:
    last = max(records, key=lambda record: record.step)
    return RunStatus(
        last.method.name, last.setting, last.seed, last.profile, last.model.name, last.data.kind, len(records),
        last.steps, max(record.created for record in records), last.run_key[:10],
    )  # fmt: skip


def _running(steps: StepStore) -> list[Running]:
    found = []
    for folder in sorted((steps.root / "work").glob("*")):
        holder = current_holder(folder)
        if holder is not None:
            found.append(Running(folder.name[:10], holder.what, holder.pid, holder.since))
    return found


def _on_cluster(steps: StepStore) -> list[OnCluster]:
    """Return what is left of the jobs that were submitted; only the cluster knows whether they are still there."""
    notes, found = SlurmNotes(steps.root), []
    for entry in notes.submissions():
        for index, task in enumerate(entry.tasks):
            for step in task:
                said = notes.said(step.key)
                if said is not None and said.place != Place(entry.name, index):
                    said = None
                if entry.phase == "submitting" or (said is not None and said.state == "done") or steps.has(step.key):
                    continue
                state, iteration, total, at = (
                    ("submitted", 0, 0, entry.since)
                    if said is None
                    else (said.state, said.iteration, said.total, said.at)
                )
                job = entry.job_id(index)
                found.append(OnCluster(step.key[:10], step.what, job, state, iteration, total, at))
    return found


def _selected(record: StepRecord, request: SweepRequest) -> bool:
    tests = (
        request.methods is None or _matches(record.method.name, request.methods),
        request.settings is None or any(_is_setting(record.setting, word) for word in request.settings),
        request.seeds is None or record.seed in request.seeds,
        request.profile is None or record.profile == request.profile,
        request.model is None or record.model.name == request.model,
    )
    return all(tests)


def _matches(name: str, words: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, word) for word in words)


def _is_setting(name: str, word: str) -> bool:
    if word == PAPER_TABLE:
        return name in {setting.name for setting in paper_table()}
    return fnmatch.fnmatchcase(name, word if set(word) & set("*?[") else parse_setting(word).name)


def _table(rows: Sequence[Any]) -> str:
    return tabulate([asdict(row) for row in rows], headers="keys", tablefmt="github")


def status_of(out: Path, steps_dir: Path, request: SweepRequest) -> Status:
    """Read the status of two stores by their folders."""
    return read_status(Store(out), StepStore(steps_dir), request)
