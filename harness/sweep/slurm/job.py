"""What runs in a job on the cluster: the steps of a chain one after the other, and an orderly way out in between.

SLURM warns a job with USR2, ``signal_delay_s`` before its time limit (and before a pre-emption, where the cluster is
set up to do so). The handler notes the signal and nothing else: the training saves a checkpoint after the iteration
it is at, and then the job puts itself back into the queue. What has no iterations (tests of a step, waiting for a
lock) cannot be left so; once half of the delay is over the job is requeued from wherever it is. submitit's own
handler would leave at an arbitrary line, with the checkpoint of ten seconds ago at best, and does not count
pre-emptions.

SIGTERM comes from ``scancel`` and from pre-emptions without a warning, after which SLURM requeues the job or does
not, as the cluster is set up: the training saves a checkpoint and goes on until it is killed, because a job that ends
by itself would not be requeued.
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

from cispbench.harness.sweep.slurm import queue as slurm_queue
from cispbench.harness.sweep.slurm.notes import Place, Said, SlurmNotes
from cispbench.harness.sweep.worker import Message, StepJob, Telling, TellingView, do_step
from cispbench.harness.training.job import StoppedError
from cispbench.splits.errors import CispbenchError, RunError

WARNING = signal.SIGUSR2
SAY_SECONDS = 5.0  # between two notes of how far a step is, on what may be a network file system
LEFT = 143  # exit code of a job that has put itself back into the queue


@dataclass(frozen=True)
class ChainJob:
    """A job's orders: its steps in order, and the terms of the cluster file."""

    place: Place
    steps: tuple[StepJob, ...]
    max_requeues: int
    signal_delay_s: int


def work_on_chain(job: ChainJob) -> None:
    """Do the steps of a job. Raises what a step raises, which makes it a failed job; its first success is kept."""
    way_out = _WayOut(job)
    with way_out.prepared():
        for step in job.steps:
            way_out.at(step)
            with Telling(way_out.say):
                _do(step, way_out)


def _do(step: StepJob, way_out: _WayOut) -> None:
    view = TellingView(way_out.say, every=SAY_SECONDS)
    if way_out.warned:
        way_out.leave()
    while True:
        try:
            do_step(step, view, way_out.asked)
        except StoppedError as stop:
            view.note(str(stop.message))
            if way_out.warned:
                way_out.leave()
            way_out.terminated = False  # saved; now on, for as long as SLURM lets it
        else:
            return


class _WayOut:
    """The signals of a job, what it says of its step, and how it leaves."""

    def __init__(self, job: ChainJob) -> None:
        self._job = job
        self._starts = 1 + int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self._id = os.environ["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            self._id = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        self._step = job.steps[0]
        self._said = Said(job.place.name, job.place.index, "running", starts=self._starts)
        self._leaving = threading.Lock()
        self._last_chance: threading.Timer | None = None
        self.warned = self.terminated = False

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Take note of the signals; they replace submitit's handlers."""
        signal.signal(WARNING, self._on_warning)
        signal.signal(signal.SIGTERM, self._on_termination)
        try:
            yield
        finally:
            signal.signal(WARNING, signal.SIG_IGN)  # from here on the job ends by itself
            if self._last_chance is not None:
                self._last_chance.cancel()

    def at(self, step: StepJob) -> None:
        """Say that a step is begun."""
        self._step = step
        self._write(replace(self._said, state="running", iteration=0, total=0, reason=""))

    def asked(self) -> bool:
        """Whether the training is to save what it has."""
        return self.warned or self.terminated

    def say(self, message: Message) -> None:
        """Write down what a worker tells."""
        if message.done:
            self._write(replace(self._said, state="done", reason=""))
        elif message.failed:
            self._write(replace(self._said, state="failed", reason=message.failed))
        elif message.note:
            self._write(replace(self._said, reason=message.note))
        else:
            self._write(replace(self._said, iteration=message.iteration, total=message.total, reason=""))

    def leave(self) -> NoReturn:
        """Put the job back into the queue and end. Raises RunError if it was there too often, or SLURM refuses."""
        with self._leaving:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._requeue()
        sys.exit(LEFT)

    def _on_warning(self, number: int, frame: object) -> None:
        if not self.warned:
            self.warned = True
            self._last_chance = threading.Timer(self._job.signal_delay_s / 2, self._leave_at_once)
            self._last_chance.daemon = True
            self._last_chance.start()

    def _on_termination(self, number: int, frame: object) -> None:
        self.terminated = True

    def _leave_at_once(self) -> None:
        if self._leaving.acquire(blocking=False):
            try:
                self._requeue()
            except CispbenchError as error:
                self.say(Message(failed=str(error)))
                print(f"Error: {error}", file=sys.stderr, flush=True)
            os._exit(LEFT)

    def _requeue(self) -> None:
        if self._starts > self._job.max_requeues:
            raise RunError(
                f"the job was started {self._starts} times and is not done (max_requeues: {self._job.max_requeues}).",
                hint="The same command submits what is left of it again; a longer time limit needs fewer starts.",
            )
        self._write(replace(self._said, state="requeued", reason=f"after start {self._starts}"))
        slurm_queue.requeue(self._id)

    def _write(self, said: Said) -> None:
        self._said = said
        with suppress(CispbenchError):  # nothing but a display needs it; what matters is written by the stores
            SlurmNotes(self._step.steps_dir).say(self._step.key, said)
