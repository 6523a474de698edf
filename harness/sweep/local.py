"""A sweep on this machine: one process a step, as many at once as there are slots, each step after the one before."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from cispbench.harness.models.catalogue import model_spec
from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.events import (
    StepEvent,
    StepFailed,
    StepFinished,
    StepLocked,
    StepProgress,
    StepTrouble,
    StepWaiting,
)
from cispbench.harness.sweep.graph import Graph, Node
from cispbench.harness.sweep.outcome import OpenSteps, SweepOutcome, sigterm_as_ctrl_c
from cispbench.harness.sweep.worker import StepJob, work

PRELOADED = ("torch", "cispbench.harness.sweep.worker")
POLL_SECONDS = 0.5
STOP_SECONDS = 15.0
RETRY_SECONDS = 1.0  # between two looks at a lock that a process of another sweep holds
LOST = 255  # the exit code that multiprocessing gives a process whose fork server has died


@dataclass
class _Worker:
    node: Node
    slot: int
    log: Path | None
    process: ForkServerProcess
    connection: Connection | None
    started: float = field(default_factory=time.monotonic)
    last: StepEvent | None = None


class LocalSweep:
    """Executes the steps that a graph lacks; ``job`` makes the order for a step in a slot (0 to ``workers`` - 1).

    ``lock_holder`` says for a step's key which process of another sweep is at work on it, if any. The step waits until
    that process ends, and its slot does other steps in the meantime.
    """

    def __init__(
        self,
        graph: Graph,
        job: Callable[[Node, int], StepJob],
        workers: int,
        view: SweepView,
        lock_holder: Callable[[str], str | None],
    ) -> None:
        self._job, self._view, self._lock_holder = job, view, lock_holder
        self._free_slots = list(range(workers))
        self._open = OpenSteps(graph.to_do(), view)
        self._priorities = graph.priorities()
        self._running: list[_Worker] = []
        # Of steps that another sweep blocks: whose lock was in the way (a step before may be damaged, and trained
        # again there), and when to look again.
        self._blocking_key: dict[str, str] = {}
        self._retry_at: dict[str, float] = {}
        # Processes are forked from one that has imported torch and has done nothing with it: a step starts in
        # milliseconds, and no process is copied that has threads or a device.
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        models = {need.run.recipe.model for node in graph.nodes for need in node.needs}
        slow = {package for model in models for package in model_spec(model).imports}
        self._context.set_forkserver_preload([*PRELOADED, *sorted(slow)])
        # Started here, because its start unblocks the signals that `_signals_blocked` blocks.
        resource_tracker.ensure_running()

    def run(self) -> SweepOutcome:
        """Work until no step is left to try; KeyboardInterrupt (also for SIGTERM) stops the workers first."""
        self._view.begin(list(self._open.waiting.values()))
        with sigterm_as_ctrl_c():
            try:
                while self._open.waiting or self._running:
                    self._start_ready_steps()
                    self._receive()
            finally:
                self._stop()
                self._view.close()
        return self._open.outcome()

    def _start_ready_steps(self) -> None:
        waiting = self._open.waiting
        unfinished = {*waiting, *(worker.node.key for worker in self._running)}
        ready = [node for node in waiting.values() if node.previous not in unfinished]
        for node in sorted(ready, key=lambda node: -self._priorities[node.key]):
            if not self._free_slots:
                return
            if not self._is_blocked(node):
                self._start(waiting.pop(node.key), self._free_slots.pop(0))

    def _is_blocked(self, node: Node) -> bool:
        """Whether a process of another sweep has the step; a lock on a network disk is asked once a second at most."""
        now = time.monotonic()
        if now < self._retry_at.get(node.key, 0.0):
            return True
        blocking = self._blocking_key.get(node.key)
        holder = self._lock_holder(node.key) or (self._lock_holder(blocking) if blocking else None)
        if holder is None:
            return False
        if node.key not in self._retry_at:
            self._view.note(f"{node.name}: {holder}; waiting until it ends")
        self._retry_at[node.key] = now + RETRY_SECONDS
        return True

    def _start(self, node: Node, slot: int) -> None:
        job = self._job(node, slot)
        try:
            payload = pickle.dumps(job)  # here, because multiprocessing's own pickling would share tensors' memory
        except Exception as error:  # noqa: BLE001 - the options of a user's method may hold anything
            self._free_slots.append(slot)
            name = job.runs[0].method.title
            self._open.fail(node, f"the plan of {name} cannot be sent to a process of its own: {error}", None)
            return
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(payload, theirs), name=f"step {node.key[:10]}")
        with _signals_blocked():
            process.start()
            theirs.close()
            self._running.append(_Worker(node, slot, job.log, process, ours))
        self._view.start(node)

    def _receive(self) -> None:
        """Wait a little for events and for ends of processes."""
        handles: list[Connection | int] = [worker.process.sentinel for worker in self._running]
        handles += [worker.connection for worker in self._running if worker.connection is not None]
        wait(handles, POLL_SECONDS)
        for worker in list(self._running):
            ended = worker.process.exitcode is not None  # asked first: all its events are in the pipe by then
            self._receive_from(worker)
            if ended:
                self._end(worker)
        self._view.refresh()

    def _receive_from(self, worker: _Worker) -> None:
        while worker.connection is not None:
            try:
                if not worker.connection.poll():
                    return
                worker.last = worker.connection.recv()
            except (EOFError, OSError):  # closed, or cut off in the middle of an event
                worker.connection.close()
                worker.connection = None
                return
            if isinstance(worker.last, StepWaiting):
                self._view.note(f"{worker.node.name}: {worker.last.reason}")
            elif isinstance(worker.last, StepTrouble):
                self._view.warn(f"{worker.node.name}: {worker.last.reason}")
            elif isinstance(worker.last, StepProgress):
                self._view.progress(worker.node, worker.last.iteration, worker.last.total)

    def _end(self, worker: _Worker) -> None:
        self._running.remove(worker)
        self._free_slots.append(worker.slot)
        self._free_slots.sort()
        code, last = worker.process.exitcode, worker.last
        if code == LOST:
            worker.process.kill()  # it may still live: only the fork server, which would tell its end, has died
        if code == 0 and isinstance(last, StepFinished):
            self._open.finish(worker.node, time.monotonic() - worker.started)
        elif code == 0 and isinstance(last, StepLocked):
            self._put_back(worker.node, last)
        else:
            reason = last.reason if isinstance(last, StepFailed) else _explain(code)
            self._open.fail(worker.node, reason, worker.log)
        if worker.connection is not None:
            worker.connection.close()

    def _put_back(self, node: Node, locked: StepLocked) -> None:
        """Let a step wait again: a process of another sweep was quicker to take it, or a step that it builds on."""
        self._view.back(node, locked.reason)
        self._open.waiting[node.key] = node
        self._blocking_key[node.key] = locked.key
        self._retry_at[node.key] = time.monotonic() + RETRY_SECONDS

    def _stop(self) -> None:
        """End the workers that still run: with SIGTERM, and with SIGKILL if that takes too long."""
        for worker in self._running:
            worker.process.terminate()
        end = time.monotonic() + STOP_SECONDS
        for worker in self._running:
            worker.process.join(max(0.0, end - time.monotonic()))
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
        if self._running:
            names = ", ".join(worker.node.name for worker in self._running)
            self._view.note(f"stopped: {names}; the same command goes on from the last checkpoints")
        self._running.clear()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM: they would interrupt the start of a process before it is in the list to stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _explain(code: int | None) -> str:
    if code == LOST:
        return "its process was lost"
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        memory = ", by hand or because the memory is used up" if -code == signal.SIGKILL else ""
        return f"its process was killed by {name}{memory}"
    return f"its process ended with exit code {code}"
