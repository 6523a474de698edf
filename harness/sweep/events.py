"""What the process of a step tells the sweep that watches it: typed events, and where they are sent from.

The text of an event is for people. No program reads it: what has happened is the event's type.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from cispbench.harness.machine.progress import PlainView
from cispbench.splits.errors import CispbenchError, describe_error

PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class StepProgress:
    """The training has done ``iteration`` of ``total`` iterations."""

    iteration: int
    total: int


@dataclass(frozen=True)
class StepWaiting:
    """The step waits until another process, named by ``reason``, lets go of a lock."""

    reason: str


@dataclass(frozen=True)
class StepTrouble:
    """Something is wrong, and the step goes on all the same: a damaged file was set aside, for example."""

    reason: str


@dataclass(frozen=True)
class StepLocked:
    """The step was not begun, or not finished: another process has the lock of the step with this ``key``."""

    key: str
    reason: str


@dataclass(frozen=True)
class StepFailed:
    """The step has failed."""

    reason: str


@dataclass(frozen=True)
class StepFinished:
    """The step is in the step store, and recorded for every run that needs it."""


StepEvent = StepProgress | StepWaiting | StepTrouble | StepLocked | StepFailed | StepFinished


@contextmanager
def sending_the_end(send: Callable[[StepEvent], None]) -> Iterator[None]:
    """Send StepFinished or StepFailed at the end of the block; an error is raised further, into log and exit code.

    Nothing is sent if the process is asked to end (SystemExit): such a step has neither finished nor failed.
    """
    try:
        yield
    except CispbenchError as error:
        send(StepFailed(str(error)))
        raise
    except Exception as error:
        send(StepFailed(describe_error(error)))
        raise
    send(StepFinished())


class EventView(PlainView):
    """Lines for the log of a step; the sweep gets its progress, every few seconds, its troubles, and its waits."""

    def __init__(self, send: Callable[[StepEvent], None], every: float = PROGRESS_SECONDS) -> None:
        super().__init__(sys.stderr)
        self._send, self._every, self._sent_at, self._total = send, every, 0.0, 0

    def start_step(self, step: int, steps: int, classes: str, images: int, iterations: int, start: int = 0) -> None:
        """Begin a step, and send where it starts."""
        super().start_step(step, steps, classes, images, iterations, start)
        self._total = iterations
        self._send(StepProgress(start, iterations))

    def update(self, iteration: int, terms: Mapping[str, float], images_per_second: float) -> None:
        """Send the progress if some time has passed since the last time."""
        super().update(iteration, terms, images_per_second)
        now = time.monotonic()
        if now - self._sent_at >= self._every:
            self._sent_at = now
            self._send(StepProgress(iteration, self._total))

    def waiting(self, text: str) -> None:
        """Write the line, and send it: otherwise nobody could see why nothing moves."""
        super().waiting(text)
        self._send(StepWaiting(text))

    def warn(self, text: str) -> None:
        """Write the line, and send it: few people look into the log of a step that ends well."""
        super().warn(text)
        self._send(StepTrouble(text))
