"""The state of sweeps and runs, read from the two stores alone: no recipe, data or cluster is asked."""

from __future__ import annotations

import fnmatch
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cispbench.harness.machine.locks import current_holder
from cispbench.harness.machine.progress import number_of
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.sweep.matrix import PAPER_TABLE, SweepRequest
from cispbench.harness.sweep.showing import TableWriter
from cispbench.harness.sweep.slurm.notes import SlurmNotes
from cispbench.results.record_fields import StepFacts, has_title
from cispbench.results.scan import scan_record, scan_steps
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
class StepInWork:
    """A step that a process works on: what the process does, its id, and since when (UTC)."""

    key: str
    what: str
    pid: int
    since: str


@dataclass(frozen=True)
class StepOnCluster:
    """A step of a submitted job, and the last report of the job.

    ``state``: submitted (no report yet), running, requeued or failed; ``at``: when the job reported it (UTC).
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
    """The answer of ``cispbench status``.

    ``published``: the number of steps in the step store; ``unrecorded``: the number of them without any record here.
    """

    runs: tuple[RunStatus, ...]
    running: tuple[StepInWork, ...]
    cluster: tuple[StepOnCluster, ...]
    published: int
    unrecorded: int

    def as_json(self) -> str:
        """Return the status for scripts."""
        return json.dumps(asdict(self))

    def as_text(self, table: TableWriter) -> str:
        """Return a table of each kind of entry, and below them how many there are."""
        parts = []
        for rows in (self.running, self.cluster):
            if rows:
                parts += [_table(rows, table), ""]
        if self.runs:
            parts += [_run_table(self.runs, table), ""]
        finished = sum(run.recorded == run.steps for run in self.runs)
        unrecorded = f" ({self.unrecorded} of them without a record here)" if self.unrecorded else ""
        in_jobs = number_of(sum(entry.state != "failed" for entry in self.cluster), "step")
        cluster = f"; {in_jobs} in jobs on a cluster, by their last reports" if self.cluster else ""
        parts.append(
            f"{number_of(len(self.running), 'step')} running{cluster}; {finished} of {len(self.runs)} runs finished; "
            f"{number_of(self.published, 'trained step')} in the step store{unrecorded}."
        )
        return "\n".join(parts)


def read_status(records: Store, steps: StepStore, request: SweepRequest) -> Status:
    """Read both stores; ``request`` selects runs (a field that is None selects all). Raises StoreError."""
    everything = [step.facts for last in records.last_files() for step in scan_steps(scan_record(last))]
    by_run: dict[str, list[StepFacts]] = defaultdict(list)
    for record in everything:
        if _selected(record, request):
            by_run[record.run_key].append(record)
    published = steps.published()
    recorded = {record.key for record in everything}
    return Status(
        tuple(_run_status(entries) for entries in by_run.values()), tuple(_running(steps)),
        tuple(_on_cluster(steps)), len(published), sum(key not in recorded for key in published),
    )  # fmt: skip


def _run_status(records: list[StepFacts]) -> RunStatus:
    last = max(records, key=lambda record: record.step)
    return RunStatus(
        last.method.title, last.setting, last.seed, last.profile, last.model.name, last.data.kind, len(records),
        last.steps, max(record.created for record in records), last.run_key[:10],
    )  # fmt: skip


def _running(steps: StepStore) -> list[StepInWork]:
    found = []
    for folder in sorted((steps.root / "work").glob("*")):
        holder = current_holder(folder)
        if holder is not None:
            found.append(StepInWork(folder.name[:10], holder.what, holder.pid, holder.since))
    return found


def _on_cluster(steps: StepStore) -> list[StepOnCluster]:
    """Return the unfinished steps of submitted jobs; only the cluster knows whether the jobs still exist."""
    notes, found = SlurmNotes(steps.root), []
    for submission in notes.submissions():
        if submission.phase == "submitting":  # its jobs may never be released
            continue
        for job in submission.jobs():
            for step in job.steps:
                report = notes.report(step.key, job.task)
                if steps.has(step.key) or (report is not None and report.state == "done"):
                    continue
                state, iteration, total, at = "submitted", 0, 0, submission.since
                if report is not None:
                    state, iteration, total, at = report.state, report.iteration, report.total, report.at
                found.append(StepOnCluster(step.key[:10], step.what, job.number, state, iteration, total, at))
    return found


def _selected(record: StepFacts, request: SweepRequest) -> bool:
    tests = (
        request.methods is None or any(has_title(record.method.title, word) for word in request.methods),
        request.settings is None or any(_is_setting(record.setting, word) for word in request.settings),
        request.seeds is None or record.seed in request.seeds,
        request.profile is None or record.profile == request.profile,
        request.model is None or record.model.name == request.model,
    )
    return all(tests)


def _is_setting(name: str, word: str) -> bool:
    if word == PAPER_TABLE:
        return name in {setting.name for setting in paper_table()}
    return fnmatch.fnmatchcase(name, word if set(word) & set("*?[") else parse_setting(word).name)


def _table(rows: Sequence[Any], table: TableWriter) -> str:
    names = [field.name for field in fields(rows[0])]
    cells = [[str(getattr(row, name)) for name in names] for row in rows]
    numbers = [name for name in names if isinstance(getattr(rows[0], name), int)]
    return table([_title(name) for name in names], cells, [_title(name) for name in numbers])


def _run_table(runs: Sequence[RunStatus], table: TableWriter) -> str:
    rows = [
        [run.setting, run.method, run.model, f"{run.data} {run.profile}", str(run.seed), f"{run.recorded}/{run.steps}",
         run.newest[:16].replace("T", " "), run.run_key]
        for run in runs
    ]  # fmt: skip
    return table(
        ["setting", "method", "model", "data", "seed", "steps", "newest (UTC)", "run"], rows, ["seed", "steps"]
    )


def _title(name: str) -> str:
    return name.replace("_", " ")


def status_of(out: Path, steps_dir: Path, request: SweepRequest) -> Status:
    """Read the status of two stores by their folders."""
    return read_status(Store(out), StepStore(steps_dir), request)
