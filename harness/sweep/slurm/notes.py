"""The notes below ``<steps-dir>/slurm/``: which jobs were submitted, and what they say of their steps.

``<name>/note.json`` stands for one submission; ``name`` is also the name of its jobs in the queue, and their logs lie
beside the note. It is written before the submission: whoever finds it knows by its phase what to make of the jobs.
``said/<key>.json`` is what the job of a step has said last.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cispbench.results.atomic import make_folder, write_atomic
from cispbench.splits.errors import StoreError

NOTE = "note.json"
PREFIX = "cispbench-"
# submitting: the jobs, if there are any, are on hold and may lack their dependencies or their orders; prepared: they
# lack only their release; released: they are the cluster's.
Phase = Literal["submitting", "prepared", "released"]


@dataclass(frozen=True)
class Place:
    """A job: the name of its submission and its index in the array."""

    name: str
    index: int


@dataclass(frozen=True)
class NotedStep:
    """A step of a job: its key, what a person calls it, and the runs that it is recorded for."""

    key: str
    what: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Submission:
    """One array; ``job``: its number on the cluster once it has one; ``out``: the folder of the records."""

    name: str
    phase: Phase
    job: str | None
    out: str
    tasks: tuple[tuple[NotedStep, ...], ...]
    since: str

    def job_id(self, index: int) -> str:
        """Return what SLURM calls a job: a submission of one job is no array."""
        return f"{self.job}_{index}" if len(self.tasks) > 1 else str(self.job)


@dataclass(frozen=True)
class Said:
    """What a job has said of a step: ``starts`` counts the job's starts, ``at`` is UTC (ISO 8601, seconds)."""

    name: str
    index: int
    state: Literal["running", "requeued", "failed", "done"]
    iteration: int = 0
    total: int = 0
    reason: str = ""
    starts: int = 1
    at: str = ""

    @property
    def place(self) -> Place:
        """The job that says it."""
        return Place(self.name, self.index)


class SlurmNotes:
    """The notes below a step store's folder."""

    def __init__(self, steps_dir: Path) -> None:
        self.folder = steps_dir / "slurm"

    def new(self, out: Path, tasks: Iterable[tuple[NotedStep, ...]]) -> Submission:
        """Make and write the note of a submission that is about to be made."""
        name = PREFIX + secrets.token_hex(5)
        submission = Submission(name, "submitting", None, str(out), tuple(tasks), _now())
        make_folder(self.folder / name)
        self.write(submission)
        return submission

    def advance(self, submission: Submission, phase: Phase, job: str | None = None) -> Submission:
        """Write the note's next phase and return it."""
        later = replace(submission, phase=phase, job=job or submission.job)
        self.write(later)
        return later

    def write(self, submission: Submission) -> None:
        """Write a note. Raises StoreError."""
        write_atomic(self.folder / submission.name / NOTE, _json(submission))

    def remove(self, submission: Submission) -> None:
        """Remove the note of jobs that are no more; their logs stay."""
        (self.folder / submission.name / NOTE).unlink(missing_ok=True)

    def submissions(self) -> list[Submission]:
        """Return all notes, the oldest first. Raises StoreError naming one that cannot be read."""
        found = [_submission(path) for path in self.folder.glob(f"{PREFIX}*/{NOTE}")]
        return sorted(found, key=lambda entry: (entry.since, entry.name))

    def log(self, submission: Submission, index: int) -> Path:
        """Return where the output of a job lies."""
        return self.folder / submission.name / f"{submission.job_id(index)}_0_log.out"

    def say(self, key: str, said: Said) -> None:
        """Write what is to be said of a step. Raises StoreError."""
        make_folder(self.folder / "said")
        write_atomic(self.folder / "said" / f"{key}.json", _json(replace(said, at=_now())))

    def said(self, key: str) -> Said | None:
        """Return what was said last of a step; None if nothing was, or nothing that can be read."""
        try:
            return Said(**json.loads((self.folder / "said" / f"{key}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _submission(path: Path) -> Submission:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tasks = tuple(
            tuple(NotedStep(step["key"], step["what"], tuple(step["runs"])) for step in task)
            for task in content.pop("tasks")
        )
        return Submission(**content, tasks=tasks)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{path} is no note of submitted jobs: {error}.",
            hint=f"Remove it after a look at the jobs: squeue --name={path.parent.name}.",
        ) from error


def _json(entry: Submission | Said) -> bytes:
    return (json.dumps(asdict(entry), indent=1) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
