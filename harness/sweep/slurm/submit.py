"""The submission of a sweep's chains, each once: jobs that are at a step already are found again by their notes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cispbench.harness.machine.locks import run_lock
from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.graph import Node
from cispbench.harness.sweep.slurm import queue as slurm_queue
from cispbench.harness.sweep.slurm.chains import Chain, group_steps
from cispbench.harness.sweep.slurm.cluster import Cluster
from cispbench.harness.sweep.slurm.job import ChainJob, work_on_chain
from cispbench.harness.sweep.slurm.notes import NotedStep, Place, SlurmNotes, Submission
from cispbench.harness.sweep.worker import StepJob
from cispbench.results.atomic import make_folder
from cispbench.splits.errors import RunError

# Until Python has handlers of its own, a warning would kill the process: it is left unheard then.
DEAF = 'sh -c \'trap "" USR2; exec "$@"\' sh'


@dataclass(frozen=True)
class Placed:
    """The job that a step is with; its number on the cluster, and where its output lies."""

    place: Place
    job: str
    log: Path


@dataclass(frozen=True)
class _Known:
    """A job of an earlier submission that is still in the queue or at work."""

    placed: Placed
    out: str
    steps: tuple[NotedStep, ...]
    waits: bool


class Submitter:
    """Finds or submits the jobs of a sweep whose records go to ``out``; ``make`` gives the orders for a step."""

    def __init__(
        self, steps_dir: Path, out: Path, cluster: Cluster, make: Callable[[Node], StepJob], view: SweepView
    ) -> None:
        self.notes = SlurmNotes(steps_dir)
        self._out, self._cluster, self._make, self._view = out, cluster, make, view

    def place(self, nodes: Sequence[Node], order: dict[str, int]) -> dict[str, Placed]:
        """Return the job of each step, by key, once all of them are in the queue.

        ``nodes``: what is to be done, each after the one it builds on; ``order``: how much builds on each. Raises
        RunError for what SLURM refuses.
        """
        make_folder(self.notes.folder)
        with run_lock(self.notes.folder, "submitting a sweep", None, on_wait=self._view.note):
            known = self._known()
            taken = _taken(nodes, known, str(self._out))
            self._cancel_orphans(nodes, known, taken)
            if taken:
                jobs = {entry.job for entry in taken.values()}
                self._view.note(f"attached to {len(jobs)} jobs on the cluster, with {len(taken)} of the steps")
            chains = group_steps(nodes, order, taken)
            return taken | self._submit(chains, taken, known)

    def _known(self) -> list[_Known]:
        """Return the jobs that are still active, and clear up what is left of earlier submissions."""
        submissions = self.notes.submissions()
        queue = slurm_queue.look_at_queue([entry.name for entry in submissions])
        known = []
        for entry in submissions:
            jobs = {place.index: job for place, job in queue.items() if place.name == entry.name}
            active = {index: job for index, job in jobs.items() if job.active}
            if entry.phase == "submitting" and active:  # on hold, and never to be let go
                slurm_queue.cancel_named(entry.name)
            if entry.phase == "submitting" or not active:
                self.notes.remove(entry)
                continue
            if entry.phase == "prepared":
                self._release(entry)
            for index, job in active.items():
                placed = Placed(Place(entry.name, index), job.job, self.notes.log(entry, index))
                known.append(_Known(placed, entry.out, entry.tasks[index], job.waits))
        return known

    def _cancel_orphans(self, nodes: Sequence[Node], known: Sequence[_Known], taken: dict[str, Placed]) -> None:
        """Take out of the queue what waits for a job that has failed: it is submitted anew."""
        keys, used = {node.key for node in nodes}, {entry.place for entry in taken.values()}
        alive = {step.key for entry in known for step in entry.steps}  # for whichever runs, into whichever store
        parents = {node.key: node.previous for node in nodes}
        orphans = [
            entry.placed.job
            for entry in known
            if entry.waits and entry.placed.place not in used and entry.out == str(self._out)
            and entry.steps[0].key in keys and parents[entry.steps[0].key] in keys - alive
        ]  # fmt: skip
        slurm_queue.cancel(orphans)

    def _submit(self, chains: Sequence[Chain], taken: dict[str, Placed], known: Sequence[_Known]) -> dict[str, Placed]:
        placed: dict[str, Placed] = {}
        if not chains:
            return placed
        size = slurm_queue.largest_array()
        parts = [chains[start : start + size] for start in range(0, len(chains), size)]
        limit = max(1, self._cluster.array_parallelism // len(parts))
        for part in parts:
            submission = self._submit_array(part, limit)
            for index, chain in enumerate(part):
                job = submission.job_id(index)
                here = Placed(Place(submission.name, index), job, self.notes.log(submission, index))
                placed |= {node.key: here for node in chain.nodes}
                dependency = _dependency(chain, taken | placed, known)
                if dependency:
                    slurm_queue.set_dependency(job, dependency)
            self._release(self.notes.advance(submission, "prepared"))
            steps = sum(len(chain.nodes) for chain in part)
            self._view.note(
                f"submitted {len(part)} jobs with {steps} steps as {submission.job} ({submission.name}), "
                f"at most {limit} at once"
            )
        return placed

    def _submit_array(self, chains: Sequence[Chain], limit: int) -> Submission:
        """Submit jobs on hold, and return their note."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.slurm.slurm import SlurmExecutor

        cluster = self._cluster
        submission = self.notes.new(self._out, (tuple(_noted(node) for node in chain.nodes) for chain in chains))
        jobs = [
            ChainJob(
                Place(submission.name, index), tuple(self._make(node) for node in chain.nodes), cluster.max_requeues,
                cluster.signal_delay_s,
            )
            for index, chain in enumerate(chains)
        ]  # fmt: skip
        python = f"{DEAF} {cluster.python or shlex.quote(sys.executable)}"
        executor = SlurmExecutor(self.notes.folder / submission.name, python=python)
        executor.update_parameters(**_parameters(cluster, submission.name, limit))
        try:
            first = executor.map_array(work_on_chain, jobs)[0].job_id
        except (FailedJobError, FailedSubmissionError) as error:
            self.notes.remove(submission)
            said = [line for line in str(error).splitlines() if "sbatch: " in line] or [str(error)]
            raise RunError(
                f"sbatch refused the jobs: {' '.join(said).replace('sbatch: ', '').strip()}.",
                hint="Change partition, account, limits or options in the cluster file (`sinfo` lists partitions).",
            ) from error
        return self.notes.advance(submission, "submitting", str(first).partition("_")[0])

    def _release(self, submission: Submission) -> None:
        slurm_queue.release(str(submission.job))
        self.notes.advance(submission, "released")


def _parameters(cluster: Cluster, name: str, limit: int) -> dict[str, object]:
    asked = {
        "partition": cluster.partition, "account": cluster.account, "qos": cluster.qos,
        "gpus_per_node": cluster.gpus or None, "setup": list(cluster.setup) or None,
    }  # fmt: skip
    return {name: value for name, value in asked.items() if value is not None} | {
        "job_name": name,
        "time": cluster.time_limit_min,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{cluster.memory_gb}G",
        "array_parallelism": limit,
        "stderr_to_stdout": True,
        # From SLURM 22.05 on srun does not take it over from sbatch, and would bind the step to one core.
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_task}"],
        "additional_parameters": {
            **cluster.options, "hold": True, "requeue": True, "kill-on-invalid-dep": "yes",
            "signal": f"USR2@{cluster.signal_delay_s}",
        },
    }  # fmt: skip


def _noted(node: Node) -> NotedStep:
    return NotedStep(node.key, node.name, tuple(need.run.run_key for need in node.needs))


def _taken(nodes: Sequence[Node], known: Sequence[_Known], out: str) -> dict[str, Placed]:
    """Return the steps that active jobs will bring to an end, for all the runs that need them here."""
    jobs: dict[str, list[_Known]] = {}
    for entry in known:
        for step in entry.steps:
            jobs.setdefault(step.key, []).append(entry)
    taken: dict[str, Placed] = {}
    keys = {node.key for node in nodes}
    for node in nodes:
        needed = set(_noted(node).runs)
        for entry in jobs.get(node.key, []):
            serves = entry.out == out and any(s.key == node.key and needed <= set(s.runs) for s in entry.steps)
            # A job whose step builds on one that nobody is at would wait for ever.
            if serves and (node.previous not in keys or node.previous in taken):
                taken[node.key] = entry.placed
    return taken


def _dependency(chain: Chain, placed: dict[str, Placed], known: Sequence[_Known]) -> str:
    """Say what a chain waits for: the step it builds on, and jobs of other sweeps that are at one of its steps."""
    first, keys = chain.nodes[0], {node.key for node in chain.nodes}
    waits = {}
    if first.previous in placed:
        waits[placed[str(first.previous)].job] = "afterok"
    for entry in known:
        if any(step.key in keys for step in entry.steps):
            waits.setdefault(entry.placed.job, "afterany")
    return ",".join(f"{kind}:{job}" for job, kind in waits.items())
