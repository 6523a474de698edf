"""The files below ``<steps-dir>/slurm/``: which jobs were submitted, and what they report of their steps.

``<name>/note.json`` describes one submission; ``name`` is also the name of its jobs in the queue, and the jobs' logs
lie beside the note. The note is written before the jobs are submitted, so that a sweep that is killed in between leaves
a trace: the next sweep sees by the note's phase what to do with the jobs. ``said/<key>.json`` is a step's last report.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cispbench.results.atomic import make_folder
from cispbench.results.checked_json import read_checked, write_checked
from cispbench.splits.errors import StoreError
from cispbench.splits.strict_fields import read_fields

NOTE = "note.json"
PREFIX = "cispbench-"
# submitting: the jobs, if there are any, are on hold, and may lack their dependencies: they are cancelled and submitted
# again. prepared: only the release is missing. released: SLURM runs them.
Phase = Literal["submitting", "prepared", "released"]
TaskId = tuple[str, int]  # a job: the name of its submission, and its index in the array


@dataclass(frozen=True)
class JobStep:
    """A step of a job: its key, its name for people, and the keys of the runs that the job records it for."""

    key: str
    what: str
    runs: tuple[str, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]{1,64}", self.key, re.ASCII):  # the name of a folder and of a file
            raise StoreError(f"{self.key[:80]!r} is no key of a step.")


@dataclass(frozen=True)
class Submission:
    """One array: its number on the cluster as soon as it has one (``job``), and the folder of the records (``out``)."""

    name: str
    phase: Phase
    job: str | None
    out: str
    tasks: tuple[tuple[JobStep, ...], ...]
    since: str

    def jobs(self) -> list[SubmittedJob]:
        """Return its jobs, in the order of their indices."""
        return [SubmittedJob(self, index) for index in range(len(self.tasks))]


@dataclass(frozen=True)
class SubmittedJob:
    """One job of a submission."""

    submission: Submission
    index: int

    @property
    def task(self) -> TaskId:
        """Its id in this program."""
        return self.submission.name, self.index

    @property
    def number(self) -> str:
        """Its id in SLURM: ``12_3``, or ``12`` if it is the only one, for a submission of one job is no array."""
        array = len(self.submission.tasks) > 1
        return f"{self.submission.job}_{self.index}" if array else str(self.submission.job)

    @property
    def steps(self) -> tuple[JobStep, ...]:
        """Its steps, in order."""
        return self.submission.tasks[self.index]


@dataclass(frozen=True)
class StepReport:
    """The last report of a job (``name`` and ``index``) on a step.

    ``reason``: why it has failed or waits. ``starts`` counts the starts of the job. ``at``: UTC (ISO 8601, seconds).
    """

    name: str
    index: int
    state: Literal["running", "requeued", "failed", "done"]
    iteration: int = 0
    total: int = 0
    reason: str = ""
    starts: int = 1
    at: str = ""

    @property
    def task(self) -> TaskId:
        """The job that reports."""
        return self.name, self.index


class SlurmNotes:
    """The notes and reports below a step store's folder."""

    def __init__(self, steps_dir: Path) -> None:
        self.folder = steps_dir / "slurm"

    def new(self, out: Path, tasks: Iterable[tuple[JobStep, ...]]) -> Submission:
        """Make and write the note of a submission that is about to be made."""
        name = PREFIX + secrets.token_hex(5)
        submission = Submission(name, "submitting", None, str(out), tuple(tasks), _now())
        make_folder(self.folder / name)
        self._write(submission)
        return submission

    def advance(self, submission: Submission, phase: Phase, job: str | None = None) -> Submission:
        """Write the note's next phase and return it."""
        later = replace(submission, phase=phase, job=job or submission.job)
        self._write(later)
        return later

    def _write(self, submission: Submission) -> None:
        write_checked(self.folder / submission.name / NOTE, asdict(submission))

    def remove(self, submission: Submission) -> None:
        """Remove the note of jobs that have ended; their logs stay."""
        (self.folder / submission.name / NOTE).unlink(missing_ok=True)

    def submissions(self) -> list[Submission]:
        """Return all submissions, the oldest first. Raises StoreError naming a note that cannot be read."""
        found = [_submission(path) for path in self.folder.glob(f"{PREFIX}*/{NOTE}")]
        return sorted(found, key=lambda entry: (entry.since, entry.name))

    def log(self, job: SubmittedJob) -> Path:
        """Return the file with the output of a job."""
        return self.folder / job.submission.name / f"{job.number}_0_log.out"

    def write_report(self, key: str, report: StepReport) -> None:
        """Write the report of a step, with the present time. Raises StoreError."""
        make_folder(self.folder / "said")
        write_checked(self.folder / "said" / f"{key}.json", asdict(replace(report, at=_now())))

    def report(self, key: str, task: TaskId) -> StepReport | None:
        """Return the last report of a step; None if there is none, or another job has written it."""
        try:
            path = self.folder / "said" / f"{key}.json"
            report = read_fields(StepReport, read_checked(path), str(path))
        except (OSError, ValueError, StoreError):
            return None
        return report if report.task == task else None


def _submission(path: Path) -> Submission:
    try:
        return read_fields(Submission, read_checked(path), "it")
    except (OSError, ValueError, StoreError) as error:
        raise StoreError(
            f"{path} is no note of submitted jobs: {str(error).removesuffix('.')}.",
            hint=f"Remove it after a look at the jobs: squeue --name={path.parent.name}.",
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
