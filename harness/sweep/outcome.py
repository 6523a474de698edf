"""How a sweep ends: the steps that are open, finished and failed, kept alike on this machine and on a cluster."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.graph import Node


@dataclass(frozen=True)
class FailedStep:
    """A step that failed, or that was not tried because a step before it failed (``log`` is None then)."""

    node: Node
    reason: str
    log: Path | None


@dataclass(frozen=True)
class SweepOutcome:
    """The number of steps that were finished now, and those that failed."""

    finished: int
    failures: tuple[FailedStep, ...]


class OpenSteps:
    """The steps of a sweep that are not over, by key and in order, and the count of those that are."""

    def __init__(self, nodes: Sequence[Node], view: SweepView) -> None:
        self.waiting = {node.key: node for node in nodes}
        self._view = view
        self._finished = 0
        self._failures: list[FailedStep] = []

    def finish(self, node: Node, seconds: float) -> None:
        """Count a step as finished."""
        self.waiting.pop(node.key, None)
        self._finished += 1
        self._view.done(node, seconds)

    def fail(self, node: Node, reason: str, log: Path | None) -> None:
        """Count a step as failed, and all steps that build on it."""
        self.waiting.pop(node.key, None)
        self._failures.append(FailedStep(node, reason, log))
        self._view.failed(node, reason, log)
        for later in [entry for entry in self.waiting.values() if entry.previous == node.key]:
            self.fail(later, f"not tried: {node.name} failed", None)

    def outcome(self) -> SweepOutcome:
        """Return the counts so far."""
        return SweepOutcome(self._finished, tuple(self._failures))


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
