"""What runs in a job on the cluster: the steps of a chain, one after the other, until SLURM wants the job to stop.

SLURM warns a job with USR2, ``signal_delay_s`` before its time limit (and before a pre-emption, if the cluster is set
up to do so). The handler only sets a flag: the training saves a checkpoint after its present iteration, and then the
job puts itself back into the queue. Work without iterations (tests of a step, waiting for a lock) cannot be stopped
like that, so once half of the delay is over the job is requeued wherever it is. submitit's own handler would stop at an
arbitrary line, with a checkpoint that is seconds old, and does not count pre-emptions.

SIGTERM comes from ``scancel``, and from pre-emptions without a warning; depending on the cluster, SLURM then requeues
the job or does not. The training saves a checkpoint and goes on until it is killed, because SLURM would not requeue a
job that ends by itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import NoReturn

from cispbench.harness.sweep.events import EventView, StepEvent, StepFailed, StepFinished, StepProgress, sending_the_end
from cispbench.harness.sweep.slurm import queue as slurm_queue
from cispbench.harness.sweep.slurm.notes import SlurmNotes, StepReport, TaskId
from cispbench.harness.sweep.worker import StepJob, do_step
from cispbench.harness.training.job import StoppedError
from cispbench.splits.errors import CispbenchError, RunError

WARNING = signal.SIGUSR2
REPORT_SECONDS = 5.0  # between two reports of progress; they may go to a network disk
REQUEUED = 143  # exit code of a job that has put itself back into the queue


@dataclass(frozen=True)
class ChainJob:
    """The order for a job: its steps in order, and the terms of the cluster file."""

    task: TaskId
    steps: tuple[StepJob, ...]
    max_requeues: int
    signal_delay_s: int


def work_on_chain(job: ChainJob) -> None:
    """Do the steps of a job. Raises what a step raises: SLURM then counts the job as failed."""
    control = _JobControl(job)
    with control.handling_signals():
        for step in job.steps:
            control.begin(step)
            with sending_the_end(control.report):
                _do(step, control)


def _do(step: StepJob, control: _JobControl) -> None:
    view = EventView(control.report, every=REPORT_SECONDS)
    if control.warned:  # after the end of the step before
        control.requeue()
    while True:
        try:
            do_step(step, view, control.should_save)
        except StoppedError as stopped:
            view.note(str(stopped.message))
            if control.warned:
                control.requeue()
            control.terminated = False  # the checkpoint is saved: go on for as long as SLURM allows
        else:
            return


class _JobControl:
    """The signals of a job, its reports, and its way back into the queue."""

    def __init__(self, job: ChainJob) -> None:
        self._job = job
        self._starts = 1 + int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self._number = os.environ["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            self._number = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        self._step = job.steps[0]
        self._report = StepReport(*job.task, "running", starts=self._starts)
        self._requeueing = threading.Lock()  # the main thread and the timer may both want to requeue
        self._timer: threading.Timer | None = None
        self.warned = self.terminated = False

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Replace submitit's signal handlers while the job works."""
        signal.signal(WARNING, self._on_warning)
        signal.signal(signal.SIGTERM, self._on_termination)
        try:
            yield
        finally:
            signal.signal(WARNING, signal.SIG_IGN)  # the job is about to end by itself
            if self._timer is not None:
                self._timer.cancel()

    def begin(self, step: StepJob) -> None:
        """Report that a step has begun."""
        self._step = step
        self._write(state="running", iteration=0, total=0)

    def should_save(self) -> bool:
        """Whether the training is to save a checkpoint and stop."""
        return self.warned or self.terminated

    def report(self, event: StepEvent) -> None:
        """Write an event of the present step into its report."""
        if isinstance(event, StepProgress):
            self._write(iteration=event.iteration, total=event.total)
        elif isinstance(event, StepFinished):
            self._write(state="done")
        elif isinstance(event, StepFailed):
            self._write(state="failed", reason=event.reason)
        else:
            self._write(reason=event.reason)

    def requeue(self) -> NoReturn:
        """Put the job back into the queue and end. Raises RunError if it started too often, or SLURM refuses."""
        with self._requeueing:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._requeue()
        sys.exit(REQUEUED)

    def _on_warning(self, number: int, frame: object) -> None:
        if not self.warned:
            self.warned = True
            self._timer = threading.Timer(self._job.signal_delay_s / 2, self._requeue_at_once)
            self._timer.daemon = True
            self._timer.start()

    def _on_termination(self, number: int, frame: object) -> None:
        self.terminated = True

    def _requeue_at_once(self) -> None:
        if self._requeueing.acquire(blocking=False):
            try:
                self._requeue()
            except CispbenchError as error:
                self._write(state="failed", reason=str(error))
                print(f"Error: {error}", file=sys.stderr, flush=True)
            os._exit(REQUEUED)

    def _requeue(self) -> None:
        if self._starts > self._job.max_requeues:
            raise RunError(
                f"the job was started {self._starts} times and is not done (max_requeues: {self._job.max_requeues}).",
                hint="The same command submits the rest of it again; a longer time limit needs fewer starts.",
            )
        # Written first: SLURM may end this process before `scontrol requeue` returns.
        self._write(state="requeued", reason=f"after start {self._starts}")
        slurm_queue.requeue(self._number)

    def _write(self, *, reason: str = "", **changes: object) -> None:
        self._report = replace(self._report, reason=reason, **changes)  # type: ignore[arg-type]
        with suppress(CispbenchError):  # reports are for people who watch; results are written by the stores
            SlurmNotes(self._step.steps_dir).write_report(self._step.key, self._report)
