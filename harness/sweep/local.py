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
from cispbench.harness.sweep.graph import Graph, Node
from cispbench.harness.sweep.worker import Message, StepJob, work

PRELOADED = ("torch", "torchvision", "cispbench.harness.sweep.worker")
POLL_SECONDS = 0.5
STOP_SECONDS = 15.0
AGAIN_SECONDS = 1.0  # until it is asked again whether a process of another sweep still has a step
LOST = 255  # the exit code that multiprocessing gives a process that nobody watches any more


@dataclass(frozen=True)
class Failure:
    """A step that failed, or (without a log) was not tried because one before it had failed."""

    node: Node
    reason: str
    log: Path | None


@dataclass(frozen=True)
class Outcome:
    """How many steps were finished now, and which were not."""

    finished: int
    failures: tuple[Failure, ...]


@dataclass
class _Worker:
    node: Node
    slot: int
    log: Path | None
    process: ForkServerProcess
    connection: Connection | None
    started: float = field(default_factory=time.monotonic)
    last: Message = field(default_factory=Message)


class LocalSweep:
    """Executes what a graph lacks; ``job`` makes the order for a step in a slot (0 to ``workers`` - 1).

    ``held``: says of a step's key which process of another sweep is at it, if any; the step is left until that ends.
    """

    def __init__(
        self,
        graph: Graph,
        job: Callable[[Node, int], StepJob],
        workers: int,
        view: SweepView,
        held: Callable[[str], str | None],
    ) -> None:
        self._graph, self._job, self._view, self._held = graph, job, view, held
        self._free = list(range(workers))
        self._waiting = {node.key: node for node in graph.to_do()}
        self._order = heights(graph)
        self._running: list[_Worker] = []
        self._failures: list[Failure] = []
        self._told: set[str] = set()
        self._blocked: dict[str, str] = {}  # by what step's lock a step was stopped: its own, or one it builds on
        self._not_before: dict[str, float] = {}
        self._finished = 0
        # Forked from a process that has imported torch and done nothing with it: a step starts in milliseconds, and
        # no process is copied that has threads or a device.
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        models = {need.run.recipe.model for node in graph.nodes for need in node.needs}
        slow = {package for model in models for package in model_spec(model).imports}
        self._context.set_forkserver_preload([*PRELOADED, *sorted(slow)])
        resource_tracker.ensure_running()  # now, for its start would unblock the signals that `_undisturbed` blocks

    def run(self) -> Outcome:
        """Work until nothing is left to try; KeyboardInterrupt (also for SIGTERM) stops the workers first."""
        self._view.begin(list(self._waiting.values()))
        with sigterm_as_ctrl_c():
            try:
                while self._waiting or self._running:
                    self._start_what_is_ready()
                    self._listen()
            finally:
                self._stop()
                self._view.close()
        return Outcome(self._finished, tuple(self._failures))

    def _start_what_is_ready(self) -> None:
        busy = {worker.node.key for worker in self._running}
        ready = [n for n in self._waiting.values() if n.previous not in self._waiting and n.previous not in busy]
        for node in sorted(ready, key=lambda node: -self._order[node.key]):
            if not self._free:
                return
            if not self._is_elsewhere(node):
                self._start(self._waiting.pop(node.key), self._free.pop(0))

    def _is_elsewhere(self, node: Node) -> bool:
        """Whether another process has a step, or had it a moment ago: locks on a network are not asked all the time."""
        now = time.monotonic()
        if now < self._not_before.get(node.key, 0.0):
            return True
        holder = self._held(node.key) or (self._held(self._blocked[node.key]) if node.key in self._blocked else None)
        if holder is None:
            return False
        self._not_before[node.key] = now + AGAIN_SECONDS
        if node.key not in self._told:
            self._told.add(node.key)
            self._view.note(f"{node.name}: {holder}; waiting until it ends")
        return True

    def _start(self, node: Node, slot: int) -> None:
        job = self._job(node, slot)
        try:
            payload = pickle.dumps(job)  # here, for multiprocessing's own pickling would share tensors' memory
        except Exception as error:  # noqa: BLE001 - a method of somebody's may hold anything
            self._free.append(slot)
            name = job.runs[0].method.name
            self._fail(node, f"the method {name} cannot be sent to a process of its own: {error}", None)
            return
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(payload, theirs), name=f"step {node.key[:10]}")
        with _undisturbed():
            process.start()
            theirs.close()
            self._running.append(_Worker(node, slot, job.log, process, ours))
        self._view.start(node)

    def _listen(self) -> None:
        """Wait a little for messages and ends."""
        handles: list[Connection | int] = [worker.process.sentinel for worker in self._running]
        handles += [worker.connection for worker in self._running if worker.connection is not None]
        wait(handles, POLL_SECONDS)
        for worker in list(self._running):
            ended = worker.process.exitcode is not None  # asked first: what it had to say is in the pipe by then
            self._hear(worker)
            if ended:
                self._end(worker)
        self._view.refresh()

    def _hear(self, worker: _Worker) -> None:
        while worker.connection is not None:
            try:
                if not worker.connection.poll():
                    return
                message: Message = worker.connection.recv()
            except (EOFError, OSError):  # closed, or cut off in the middle of a message
                worker.connection.close()
                worker.connection = None
                return
            worker.last = message
            if message.note and not message.held:
                self._view.note(f"{worker.node.name}: {message.note}")
            elif message.total:
                self._view.progress(worker.node, message.iteration, message.total)

    def _end(self, worker: _Worker) -> None:
        self._running.remove(worker)
        self._free.append(worker.slot)
        self._free.sort()
        if worker.process.exitcode == LOST:  # the process may live on where only its watcher has died
            worker.process.kill()
        last = worker.last
        if last.done and worker.process.exitcode == 0:
            self._finished += 1
            self._view.done(worker.node, time.monotonic() - worker.started)
        elif last.held and worker.process.exitcode == 0:
            self._put_back(worker.node, last.held, last.note)
        else:
            self._fail(worker.node, last.failed or _explain(worker.process.exitcode), worker.log)
        if worker.connection is not None:
            worker.connection.close()

    def _put_back(self, node: Node, blocked: str, reason: str) -> None:
        """Leave a step that a process of another sweep was quicker to take, or that builds on one it has taken."""
        self._view.back(node, reason)
        self._waiting[node.key] = node
        self._told.add(node.key)
        self._blocked[node.key] = blocked
        self._not_before[node.key] = time.monotonic() + AGAIN_SECONDS

    def _fail(self, node: Node, reason: str, log: Path | None) -> None:
        failure = Failure(node, reason, log)
        self._failures.append(failure)
        self._view.failed(node, reason, log)
        for later in [entry for entry in self._waiting.values() if entry.previous == node.key]:
            del self._waiting[later.key]
            self._fail(later, f"not tried: {node.name} failed", None)

    def _stop(self) -> None:
        """End the workers that are left, kindly first."""
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
def _undisturbed() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off: a process that is half started is in no list of ours yet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heights(graph: Graph) -> dict[str, int]:
    """Return the iterations on the longest way from each step to the end of a run: the longest is begun first."""
    found: dict[str, int] = {}
    below: dict[str, int] = {}
    for node in reversed(graph.nodes):
        found[node.key] = (node.iterations if node.to_train else 0) + below.get(node.key, 0)
        if node.previous is not None:
            below[node.previous] = max(below.get(node.previous, 0), found[node.key])
    return found


def _explain(code: int | None) -> str:
    if code == LOST:
        return "its process was lost"
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        memory = ", by hand or because the memory is used up" if -code == signal.SIGKILL else ""
        return f"its process was killed by {name}{memory}"
    return f"its process ended with exit code {code}"


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
