"""SLURM's commands, as far as a sweep needs them: what the queue holds, and changes to jobs that are in it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cispbench.harness.sweep.slurm.notes import TaskId
from cispbench.splits.errors import RunError

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
TIMEOUT_SECONDS = 120.0  # a busy controller may need that long to answer
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
NEVER = "DependencyNeverSatisfied"
NO_REASON = {"", "None", "(null)"}
# Reasons that pass by themselves. Any other one may need somebody to do something, so the sweep shows it.
USUAL_REASONS = {
    *NO_REASON, "BeginTime", "Cleaning", "Dependency", "JobArrayTaskLimit", "Priority", "Prolog", "Resources",
}  # fmt: skip


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue, for some minutes also after its end; ``reason``: why it waits, or how it ended."""

    number: str
    state: str
    reason: str
    node: str

    @property
    def active(self) -> bool:
        """Whether it runs, or may run later."""
        return self.state not in ENDED and self.reason != NEVER

    @property
    def waits(self) -> bool:
        """Whether it may run later."""
        return self.active and not self.node

    @property
    def unusual_reason(self) -> str:
        """Why it waits if that may not pass by itself ("BadConstraints", "JobHeldAdmin"), else ""."""
        return self.reason if self.waits and self.reason not in USUAL_REASONS else ""

    def __str__(self) -> str:
        return self.state if self.reason in NO_REASON else f"{self.state} ({self.reason})"


def check_commands() -> None:
    """Raise RunError if one of SLURM's commands, or submitit, is missing."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise RunError(
            f"--slurm needs SLURM's commands, and {', '.join(missing)} cannot be found.",
            hint="Run the sweep on a machine that submits to the cluster, or without --slurm.",
        )
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise RunError(
            f"--slurm needs submitit, which cannot be imported: {error}.", hint="pip install 'cispbench[slurm]'"
        ) from error


def look_at_queue(submissions: Collection[str]) -> dict[TaskId, QueuedJob]:
    """Return the jobs of submissions, by name, that the controller knows. Raises RunError if it does not answer."""
    if not submissions:
        return {}
    lines = _call(["squeue", "--noheader", "--array", "--states=all", f"--name={','.join(sorted(submissions))}",
                   "--format=%j|%F|%K|%T|%r|%N"])  # fmt: skip
    found: dict[TaskId, QueuedJob] = {}
    for line in lines.splitlines():
        name, job, index, state, reason, node = (word.strip() for word in line.split("|", 5))
        array = index.isdecimal()
        found[name, int(index) if array else 0] = QueuedJob(f"{job}_{index}" if array else job, state, reason, node)
    return found


def set_dependency(job: str, dependency: str) -> None:
    """Let a job that is on hold wait for others. Raises RunError."""
    _call(["scontrol", "update", f"JobId={job}", f"Dependency={dependency}"])


def release(job: str) -> None:
    """Release all jobs of an array from their hold. Raises RunError."""
    _call(["scontrol", "release", job])


def cancel(jobs: Sequence[str]) -> None:
    """Take jobs (numbers, or ``--name=<submission>``) out of the queue, or end them. Raises RunError."""
    if jobs:
        _call(["scancel", *jobs])


def requeue(job: str) -> None:
    """End a job that runs and put it back into the queue. Raises RunError."""
    _call(["scontrol", "requeue", job])


def max_array_size() -> int:
    """Return how many jobs an array may have. Raises RunError."""
    for line in _call(["scontrol", "show", "config"]).splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize" and value.strip().isdecimal():
            return max(1, int(value) - 1)
    return 1000  # SLURM's default


def _call(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"`{' '.join(command[:2])}` failed: {error}.", hint="Is the cluster up?") from error
    if done.returncode != 0:
        what = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise RunError(f"`{' '.join(command[:3])}` failed: {what}.", hint="Is the cluster up?")
    return done.stdout
