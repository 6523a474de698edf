"""The submission of a sweep's chains: each step is given to one job, and jobs of earlier sweeps are found again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from cispbench.harness.machine.locks import run_lock
from cispbench.harness.machine.progress import number_of
from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.graph import Node
from cispbench.harness.sweep.slurm import queue as slurm_queue
from cispbench.harness.sweep.slurm.chains import Chain, group_steps
from cispbench.harness.sweep.slurm.cluster import Cluster
from cispbench.harness.sweep.slurm.job import ChainJob, work_on_chain
from cispbench.harness.sweep.slurm.notes import JobStep, SlurmNotes, Submission, SubmittedJob, TaskId
from cispbench.harness.sweep.worker import StepJob
from cispbench.results.atomic import make_folder
from cispbench.splits.errors import RunError

# A warning that comes before Python has set its handlers would kill the process, so it starts with USR2 ignored.
IGNORE_WARNING = 'sh -c \'trap "" USR2; exec "$@"\' sh'


class Submitter:
    """Finds or submits the jobs of a sweep whose records go to ``out``; ``make`` makes the order for a step."""

    def __init__(
        self, steps_dir: Path, out: Path, cluster: Cluster, make: Callable[[Node], StepJob], view: SweepView
    ) -> None:
        self.notes = SlurmNotes(steps_dir)
        self._out, self._cluster, self._make, self._view = out, cluster, make, view

    def submit(self, nodes: Sequence[Node], priorities: Mapping[str, int], jobs: dict[str, SubmittedJob]) -> None:
        """Put the job of each step, by the step's key, into ``jobs`` as soon as SLURM runs it by itself.

        ``nodes``: the steps to do, each after the one it builds on. Raises RunError if SLURM refuses something.
        """
        make_folder(self.notes.folder)
        # Under a lock, so that two sweeps that start together do not submit the same steps.
        with run_lock(self.notes.folder, "submitting a sweep", None, on_wait=self._view.note):
            active, waiting = self._active_jobs()
            mine = [job for job in active if job.submission.out == str(self._out)]
            attached = _attach(nodes, mine)
            slurm_queue.cancel(_orphans(nodes, [job for job in mine if job.task in waiting], attached, active))
            jobs |= attached
            if attached:
                number = number_of(len({job.task for job in attached.values()}), "job")
                self._view.note(f"attached to {number} on the cluster, with {len(attached)} of the steps")
            self._submit(group_steps(nodes, priorities, attached), active, jobs)

    def _active_jobs(self) -> tuple[list[SubmittedJob], set[TaskId]]:
        """Return the jobs that run or wait, and which of them wait; clear up after earlier submissions."""
        submissions = self.notes.submissions()
        queue = slurm_queue.look_at_queue([entry.name for entry in submissions])
        queue = {task: job for task, job in queue.items() if job.active}
        found = []
        for submission in submissions:
            jobs = [job for job in submission.jobs() if job.task in queue]
            if submission.phase == "submitting" and any(name == submission.name for name, _ in queue):
                slurm_queue.cancel([f"--name={submission.name}"])  # on hold, and nobody would release them
            if submission.phase == "submitting" or not jobs:
                self.notes.remove(submission)
                continue
            if submission.phase == "prepared":
                self._release(submission)
            found += jobs
        return found, {task for task, job in queue.items() if job.waits}

    def _submit(self, chains: Sequence[Chain], active: Sequence[SubmittedJob], jobs: dict[str, SubmittedJob]) -> None:
        if not chains:
            return
        size = slurm_queue.max_array_size()
        parts = [chains[start : start + size] for start in range(0, len(chains), size)]
        limit = max(1, self._cluster.array_parallelism // len(parts))
        for part in parts:
            submission = self._submit_array(part, limit)
            submitted: dict[str, SubmittedJob] = {}
            for chain, job in zip(part, submission.jobs(), strict=True):
                submitted |= {node.key: job for node in chain}
                dependency = _dependency(chain, {**jobs, **submitted}, active)
                if dependency:
                    slurm_queue.set_dependency(job.number, dependency)
            self._release(self.notes.advance(submission, "prepared"))
            jobs |= submitted
            number, steps = number_of(len(part), "job"), number_of(sum(map(len, part)), "step")
            self._view.note(
                f"submitted {number} with {steps} as {submission.job} ({submission.name}), at most {limit} at once"
            )

    def _submit_array(self, chains: Sequence[Chain], limit: int) -> Submission:
        """Submit jobs on hold, and return their note."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.slurm.slurm import SlurmExecutor

        cluster = self._cluster
        submission = self.notes.new(self._out, (tuple(map(_job_step, chain)) for chain in chains))
        jobs = [
            ChainJob(job.task, tuple(map(self._make, chain)), cluster.max_requeues, cluster.signal_delay_s)
            for job, chain in zip(submission.jobs(), chains, strict=True)
        ]
        python = f"{IGNORE_WARNING} {cluster.python or shlex.quote(sys.executable)}"
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


def _job_step(node: Node) -> JobStep:
    return JobStep(node.key, node.name, tuple(need.run.run_key for need in node.needs))


def _attach(nodes: Sequence[Node], jobs: Sequence[SubmittedJob]) -> dict[str, SubmittedJob]:
    """Return the jobs, by the step's key, that will finish and record steps for all the runs that need them."""
    by_step: dict[str, list[tuple[SubmittedJob, set[str]]]] = {}
    for job in jobs:
        for step in job.steps:
            by_step.setdefault(step.key, []).append((job, set(step.runs)))
    attached: dict[str, SubmittedJob] = {}
    keys = {node.key for node in nodes}
    for node in nodes:
        if node.previous in keys and node.previous not in attached:
            continue  # no job works on the step before: a job that waits for that would wait for ever
        runs = {need.run.run_key for need in node.needs}
        for job, recorded in by_step.get(node.key, []):
            if runs <= recorded:
                attached[node.key] = job
    return attached


def _orphans(
    nodes: Sequence[Node], waiting: Sequence[SubmittedJob], attached: Mapping[str, SubmittedJob],
    active: Sequence[SubmittedJob],
) -> list[str]:  # fmt: skip
    """Return the numbers of ``waiting`` jobs that wait for a failed job; their steps are submitted again."""
    previous = {node.key: node.previous for node in nodes}
    in_work = {step.key for job in active for step in job.steps}
    lost = {key for key, before in previous.items() if before in previous and before not in in_work}
    used = {job.task for job in attached.values()}
    return [job.number for job in waiting if job.task not in used and job.steps[0].key in lost]


def _dependency(chain: Chain, jobs: Mapping[str, SubmittedJob], active: Sequence[SubmittedJob]) -> str:
    """Return what a chain waits for: the step it builds on, and jobs of other sweeps that have one of its steps."""
    keys: Collection[str] = {node.key for node in chain}
    waits = {}
    if chain[0].previous in jobs:
        waits[jobs[str(chain[0].previous)].number] = "afterok"
    for job in active:
        # They may do it for other runs or other records, so whatever comes of them the chain is needed, too.
        if any(step.key in keys for step in job.steps):
            waits.setdefault(job.number, "afterany")
    return ",".join(f"{kind}:{number}" for number, kind in waits.items())
