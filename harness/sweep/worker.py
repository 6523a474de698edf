"""The process of one step: it trains and tests the step, and writes the records of all runs that share it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import torch

from cispbench.harness.machine.devices import choose_device
from cispbench.harness.machine.locks import HeldError
from cispbench.harness.machine.progress import PlainView
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.runs.execute import RunOptions, execute
from cispbench.harness.runs.plan import RunPlan, code_versions
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.runs.weights_choice import choose_weights
from cispbench.harness.training.job import StoppedError
from cispbench.results.store import Store
from cispbench.splits.errors import CispbenchError, RunError, WeightsError

TELL_SECONDS = 0.5
ENDED = 143  # exit code of a worker that was asked to stop


@dataclass(frozen=True)
class StepJob:
    """What a worker is told: the step of the first run is trained, and recorded for each of ``runs``.

    ``log``: the file for all output; None: it stays where it goes. ``weights``: the pre-trained weights as they were
    asked for, with ``named`` where the user has named them. ``versions``: those of the code that made the plan.
    ``micro_batch``: the images that the device holds at once at most. ``wait``: how long to wait for a process of
    another sweep that is at the step, seconds (None: until it ends).
    """

    key: str
    step: int
    runs: tuple[RunPlan, ...]
    out: Path
    steps_dir: Path
    log: Path | None
    device: str
    threads: int
    loaders: int
    weights: str | None
    named: bool
    versions: tuple[int, int, int]
    micro_batch: int | None = None
    wait: float | None = None


@dataclass(frozen=True)
class Message:
    """What a worker tells: how far it is (``iteration`` of ``total``), a ``note``, ``failed`` why, ``done``, or which
    step's lock (its key) another process ``held``, with a ``note`` of who it is."""

    iteration: int = 0
    total: int = 0
    note: str = ""
    failed: str = ""
    held: str = ""
    done: bool = False


def work(payload: bytes, connection: Connection) -> None:
    """Do the pickled StepJob in this process, whose output goes to the job's log."""
    # The sweep alone decides when it ends: Ctrl-C on a terminal reaches all processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked in whoever was started by the sweep
    threading.Thread(target=_die_with_the_sweep, daemon=True).start()
    with Telling(connection.send):
        job: StepJob = pickle.loads(payload)
        if job.log is not None:
            _write_to(job.log)
        try:
            do_step(job, TellingView(connection.send))
        except HeldError as held:
            connection.send(Message(held=held.folder.name, note=held.message))
            sys.exit(0)  # without the word that all is done


def do_step(job: StepJob, view: PlainView, stop: Callable[[], bool] | None = None) -> None:
    """Train and test a step in this process, and write its records. Raises CispbenchError; StoppedError for ``stop``.

    What is there already is left as it is, so a step may be done twice, here or elsewhere. HeldError: ``job.wait``.
    """
    versions = code_versions(job.runs[0].method)
    if versions != job.versions:
        raise RunError(
            "the code has changed since the sweep was planned: the versions of training, models and method are "
            f"{versions}, and were {job.versions}.",
            hint="Start the sweep again.",
        )
    torch.set_num_threads(job.threads)
    options = RunOptions(
        records=Store(job.out), steps=StepStore(job.steps_dir), device=choose_device(job.device), view=view,
        workers=job.loaders, load_encoder=_loader(job), until=job.step, stop=stop,
        micro_batch=job.micro_batch, wait=job.wait,
    )  # fmt: skip
    for run in job.runs:
        execute(run, options)


def _loader(job: StepJob) -> _Encoder | None:
    recipe, sha256 = job.runs[0].recipe, job.runs[0].weights_sha256
    return None if recipe.weights == "none" else _Encoder(job.weights, sha256, recipe.model, job.steps_dir, job.named)


@dataclass(frozen=True)
class _Encoder:
    """Loads pre-trained weights when a fresh model asks for them: of the steps, only the first one does."""

    weights: str | None
    sha256: str | None
    model: str
    steps_dir: Path
    named: bool

    def __call__(self, fresh: IncrementalModel) -> None:
        choice = choose_weights(self.weights, self.model, self.steps_dir / "weights", named=self.named)
        if choice.sha256 != self.sha256:
            raise WeightsError(
                f"the weights {self.weights} have changed since the sweep was planned: their SHA-256 is "
                f"{choice.sha256}, and was {self.sha256}.",
                hint="Start the sweep again.",
            )
        if choice.load is not None:
            choice.load(fresh)


class Telling:
    """Tells the sweep how the work has ended; the error goes on its way, into the log and the exit code.

    A step that was asked to stop has not ended.
    """

    def __init__(self, tell: Callable[[Message], None]) -> None:
        self._tell = tell

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._tell(Message(done=True))
        elif isinstance(error, StoppedError):
            pass
        elif isinstance(error, CispbenchError):
            self._tell(Message(failed=str(error)))
        elif isinstance(error, Exception):
            self._tell(Message(failed=f"{type(error).__name__}: {error}".partition("\n")[0]))


class TellingView(PlainView):
    """Lines for the log; every few seconds the sweep is told how far the training is."""

    def __init__(self, tell: Callable[[Message], None], every: float = TELL_SECONDS) -> None:
        super().__init__(sys.stderr)
        self._tell, self._every, self._told, self._total = tell, every, 0.0, 0

    def start_step(self, step: int, steps: int, classes: str, images: int, iterations: int, start: int = 0) -> None:
        """Begin a step, and tell."""
        super().start_step(step, steps, classes, images, iterations, start)
        self._total = iterations
        self._tell(Message(start, iterations))

    def update(self, iteration: int, terms: Mapping[str, float], images_per_second: float) -> None:
        """Tell, where it is time to."""
        super().update(iteration, terms, images_per_second)
        now = time.monotonic()
        if now - self._told >= self._every:
            self._told = now
            self._tell(Message(iteration, self._total))

    def note(self, text: str) -> None:
        """Write the line; what it waits for is told, too."""
        super().note(text)
        if "already at work" in text:  # a lock that another sweep holds: who looks on wonders why nothing moves
            self._tell(Message(note=text))


def _write_to(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(ENDED)


def _die_with_the_sweep() -> None:
    """End at once when the sweep's process is gone: nobody would start what comes next, or stop this."""
    sweep = multiprocessing.parent_process()
    if sweep is not None:
        wait([sweep.sentinel])
        os._exit(ENDED)
