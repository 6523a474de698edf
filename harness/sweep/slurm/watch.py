"""The watch over a sweep's jobs: stores say what is done, reports how far jobs are, the queue whether they live."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cispbench.harness.machine.progress import number_of
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.graph import Node
from cispbench.harness.sweep.outcome import OpenSteps, SweepOutcome, sigterm_as_ctrl_c
from cispbench.harness.sweep.slurm import queue as slurm_queue
from cispbench.harness.sweep.slurm.notes import SlurmNotes, StepReport, SubmittedJob, TaskId
from cispbench.harness.sweep.slurm.queue import QueuedJob
from cispbench.results.store import Store
from cispbench.splits.errors import RunError

PATIENCE = 3  # looks at a job that ended without a result: on a network disk its files may appear seconds later


class SlurmWatch:
    """Watches the jobs of steps until each step is done, has failed, or cannot be tried."""

    def __init__(self, nodes: Sequence[Node], records: Store, steps_dir: Path, poll_s: int, view: SweepView) -> None:
        self._open = OpenSteps(nodes, view)
        self._jobs: dict[str, SubmittedJob] = {}
        self._records, self._steps = records, StepStore(steps_dir)
        self._notes, self._poll_s, self._view = SlurmNotes(steps_dir), poll_s, view
        self._begun: dict[str, float] = {}  # steps that are shown as running, and since when
        self._looks: dict[str, int] = {}  # at steps whose jobs have ended without a result
        self._shown_reasons: dict[str | TaskId, str] = {}  # why a step or a job waits, as it was shown last
        self._queue: dict[TaskId, QueuedJob] | None = None  # None until the cluster has answered once
        self._answers = True

    def run(self, submit: Callable[[dict[str, SubmittedJob]], None]) -> SweepOutcome:
        """Let ``submit`` fill in the job of each step, by key, and watch them to the end.

        KeyboardInterrupt (also for SIGTERM) leaves the jobs on the cluster.
        """
        self._view.begin(list(self._open.waiting.values()))
        with sigterm_as_ctrl_c():
            try:
                submit(self._jobs)
                while self._open.waiting:
                    self._look()
                    if self._open.waiting:
                        self._pause()
            except KeyboardInterrupt:
                self._explain_the_rest()
                raise
            finally:
                self._view.close()
        return self._open.outcome()

    def _pause(self) -> None:
        end = time.monotonic() + self._poll_s
        while (seconds := end - time.monotonic()) > 0:
            self._view.refresh()
            time.sleep(min(0.5, seconds))

    def _look(self) -> None:
        answered = self._look_at_queue()
        for node in list(self._open.waiting.values()):
            if node.key in self._open.waiting:  # else it has just failed with a step that it builds on
                self._look_at(node, answered)

    def _look_at_queue(self) -> bool:
        """Ask for the queue, and return whether the controller answers; if it does not, nothing is given up."""
        names = {self._jobs[key].submission.name for key in self._open.waiting}
        try:
            self._queue = slurm_queue.look_at_queue(names)
        except RunError as error:
            if self._answers:
                self._view.warn(f"the cluster does not answer: {error.message} The sweep keeps asking.")
            self._answers = False
            return False
        if not self._answers:
            self._view.note("the cluster answers again")
        self._answers = True
        for task, job in self._queue.items():
            more = f"(`scontrol show job {job.number}` tells more)"
            self._show_reason(task, job.unusual_reason, f"job {job.number} waits: {job.unusual_reason} {more}")
        return True

    def _show_reason(self, what: str | TaskId, reason: str, line: str) -> None:
        """Show the line once for each new reason."""
        if reason and self._shown_reasons.get(what) != reason:
            self._view.warn(line)
        self._shown_reasons[what] = reason

    def _look_at(self, node: Node, answered: bool) -> None:
        job = self._jobs[node.key]
        report = self._notes.report(node.key, job.task)
        queued = None if self._queue is None else self._queue.get(job.task)
        ended = answered and (queued is None or not queued.active)
        if (ended or (report is not None and report.state == "done")) and self._is_done(node):
            self._finish(node)
        elif report is not None and report.state == "failed":
            self._open.fail(node, report.reason, self._notes.log(job))
        elif ended:
            self._looks[node.key] = self._looks.get(node.key, 0) + 1
            if self._looks[node.key] >= PATIENCE:
                how = "is no longer in the queue" if queued is None else f"ended as {queued}"
                self._open.fail(node, f"its job {job.number} {how}, without a result", self._notes.log(job))
        else:
            self._looks.pop(node.key, None)
            self._show(node, queued, report)

    def _is_done(self, node: Node) -> bool:
        """Whether the stores have all of a step, no matter which job or sweep has brought it there."""
        return self._steps.has(node.key) and all(
            self._records.find(node.key, need.run.run_key) is not None for need in node.needs
        )

    def _show(self, node: Node, queued: QueuedJob | None, report: StepReport | None) -> None:
        waits = queued is not None and queued.waits
        if report is not None and report.state in ("running", "done") and not waits:
            if node.key not in self._begun:
                self._begun[node.key] = time.monotonic()
                self._view.start(node)
            if report.total:
                self._view.progress(node, report.iteration, report.total)
            self._show_reason(node.key, report.reason, f"{node.name}: {report.reason}")
        elif node.key in self._begun and queued is not None and waits:
            del self._begun[node.key]
            reached = f"at iteration {report.iteration} of {report.total}" if report and report.total else "begun"
            self._view.back(node, f"job {queued.number} is back in the queue ({reached}): {queued}")

    def _finish(self, node: Node) -> None:
        if node.key not in self._begun:  # it began and ended between two looks
            self._view.start(node)
            self._view.progress(node, 0, node.iterations)
        self._open.finish(node, time.monotonic() - self._begun.pop(node.key, time.monotonic()))

    def _explain_the_rest(self) -> None:
        jobs = {job.task: job for key, job in self._jobs.items() if key in self._open.waiting}
        if jobs:  # none if the submission was interrupted: the next sweep clears up after it
            names = ",".join(sorted({job.submission.name for job in jobs.values()}))
            self._view.note(
                f"the jobs on the cluster go on ({number_of(len(jobs), 'job')}); the same command watches them again, "
                f"`scancel --name={names}` ends them"
            )
