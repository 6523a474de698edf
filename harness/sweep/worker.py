"""The process of one step: it trains and tests the step, and writes the records of all runs that share it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NoReturn

import torch

from cispbench.harness.machine.devices import choose_device
from cispbench.harness.machine.locks import HeldError
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.runs.execute import execute
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import RunPlan
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.sweep.events import EventView, StepLocked, sending_the_end
from cispbench.results.store import Store

ENDED = 143  # exit code of a worker that was asked to stop


@dataclass(frozen=True)
class StepJob:
    """The order for one step: it is trained for the first of ``runs``, and recorded for each of them.

    ``log``: the file that gets all output (None: the output is not redirected). ``loaders``: processes that load
    images. ``wait``: seconds to wait for a process of another sweep that has the step's lock (None: until it ends).
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
    wait: float | None = None


def work(payload: bytes, connection: Connection) -> None:
    """Do the pickled StepJob in this process."""
    # Ctrl-C on a terminal reaches all processes; the sweep alone decides what it does with its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    # The sweep blocks SIGTERM while it starts a process, and the process inherits that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_die_with_the_sweep, daemon=True).start()
    with sending_the_end(connection.send):
        job: StepJob = pickle.loads(payload)
        if job.log is not None:
            _redirect_output(job.log)
        try:
            do_step(job, EventView(connection.send))
        except HeldError as held:
            connection.send(StepLocked(held.folder.name, held.message))
            sys.exit(0)  # without StepFinished


def do_step(job: StepJob, view: ProgressView, stop: Callable[[], bool] | None = None) -> None:
    """Train and test a step in this process, and write its records.

    Weights, tests and records that exist already stay as they are, so that a step may safely be done twice, here or on
    another machine. Raises CispbenchError: among them StoppedError once ``stop`` returns True, and HeldError if another
    process has the step's lock for longer than ``job.wait``.
    """
    torch.set_num_threads(job.threads)
    options = RunOptions(
        records=Store(job.out), steps=StepStore(job.steps_dir), device=choose_device(job.device), view=view,
        workers=job.loaders, until=job.step, stop=stop, wait=job.wait,
    )  # fmt: skip
    for run in job.runs:
        execute(run, options)


def _redirect_output(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(ENDED)


def _die_with_the_sweep() -> None:
    """End this process when the sweep's process has ended: nobody else could stop it, or would use its result."""
    sweep = multiprocessing.parent_process()
    if sweep is not None:
        wait([sweep.sentinel])
        os._exit(ENDED)
