"""SLURM's commands, as far as a sweep needs them: what the queue holds, and changes to jobs that are in it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cispbench.harness.sweep.slurm.notes import Place
from cispbench.splits.errors import RunError

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
SECONDS = 120.0  # a controller under load may take its time
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
NEVER = "DependencyNeverSatisfied"
# Why jobs wait day in, day out; any other reason may need somebody to do something.
ORDINARY = {
    "", "None", "(null)", "BeginTime", "Cleaning", "Dependency", "JobArrayTaskLimit", "Priority", "Prolog", "Resources",
}  # fmt: skip


@dataclass(frozen=True)
class Queued:
    """A job as the queue shows it, for a while also after its end; ``reason``: why it waits, or how it ended."""

    job: str
    state: str
    reason: str
    node: str

    @property
    def active(self) -> bool:
        """Whether it may yet do something."""
        return self.state not in ENDED and self.reason != NEVER

    @property
    def waits(self) -> bool:
        """Whether it is in the queue and on no node."""
        return self.active and not self.node

    @property
    def odd_reason(self) -> str:
        """Why it waits, where that may not pass by itself ("BadConstraints", "JobHeldAdmin")."""
        return self.reason if self.waits and self.reason not in ORDINARY else ""

    def __str__(self) -> str:
        plain = self.reason in ("", "None", "(null)")
        return self.state if plain else f"{self.state} ({self.reason})"


def check_commands() -> None:
    """Raise RunError where SLURM's commands, or submitit, are not at hand."""
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


def look_at_queue(names: Collection[str]) -> dict[Place, Queued]:
    """Return the jobs of the submissions that the controller knows. Raises RunError if it does not answer."""
    if not names:
        return {}
    form = "%j|%F|%K|%T|%r|%N"
    lines = _call(["squeue", "--noheader", "--array", "--states=all", f"--name={','.join(sorted(names))}",
                   f"--format={form}"])  # fmt: skip
    found = {}
    for line in lines.splitlines():
        name, number, index, state, reason, node = line.strip().split("|", 5)
        array = index.isdecimal()
        place = Place(name, int(index) if array else 0)
        found[place] = Queued(f"{number}_{index}" if array else number, state.strip(), reason.strip(), node.strip())
    return found


def set_dependency(job: str, dependency: str) -> None:
    """Let a job that is on hold wait for others. Raises RunError."""
    _call(["scontrol", "update", f"JobId={job}", f"Dependency={dependency}"])


def release(job: str) -> None:
    """Release all jobs of an array. Raises RunError."""
    _call(["scontrol", "release", job])


def cancel(jobs: Sequence[str]) -> None:
    """Take jobs out of the queue, or end them. Raises RunError."""
    if jobs:
        _call(["scancel", *jobs])


def cancel_named(name: str) -> None:
    """End all jobs of a submission. Raises RunError."""
    _call(["scancel", f"--name={name}"])


def requeue(job: str) -> None:
    """End a job that runs and put it back into the queue. Raises RunError."""
    _call(["scontrol", "requeue", job])


def largest_array() -> int:
    """Return how many jobs an array may have. Raises RunError."""
    for line in _call(["scontrol", "show", "config"]).splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize" and value.strip().isdecimal():
            return max(1, int(value) - 1)
    return 1000  # what SLURM comes with


def _call(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"`{' '.join(command[:2])}` failed: {error}.", hint="Is the cluster up?") from error
    if done.returncode != 0:
        what = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise RunError(f"`{' '.join(command[:3])}` failed: {what}.", hint="Is the cluster up?")
    return done.stdout
