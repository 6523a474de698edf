"""What a sweep shows while it works: a live table on a terminal, elsewhere one line for each event."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cispbench.harness.machine.output import unescaped
from cispbench.harness.machine.progress import describe_seconds
from cispbench.harness.sweep.graph import Node

REFRESH_SECONDS = 0.5


@dataclass
class _RunningStep:
    """A step that has begun: ``first`` is the iteration it resumed from (None: not known yet), ``now`` the present."""

    node: Node
    total: int
    first: int | None = None
    now: int = 0

    def worked(self) -> int:
        """Return the iterations that this sweep has done of it."""
        return self.now - (self.first or 0)


class SweepView:
    """Lines for a log on ``stream``; ``scores`` returns the scores after a finished step, in a few words."""

    def __init__(self, stream: TextIO, scores: Callable[[Node], str]) -> None:
        self._stream, self._scores = stream, scores
        self._began = time.monotonic()
        self._total = self._done = self._failed = 0
        self._remaining = 0  # iterations of the steps that are not over
        self._worked = 0  # iterations that this sweep has done, of steps that do not run now
        self._running: dict[str, _RunningStep] = {}

    def begin(self, nodes: Sequence[Node]) -> None:
        """Begin a sweep of these steps."""
        self._began, self._total = time.monotonic(), len(nodes)
        self._remaining = sum(node.iterations for node in nodes if node.to_train)

    def start(self, node: Node) -> None:
        """Say that a step has begun."""
        total = node.iterations if node.to_train else 0
        self._running[node.key] = _RunningStep(node, total)
        self.note(f"start   {node.name}  ({node.key[:10]}, {total} iterations)")

    def progress(self, node: Node, iteration: int, total: int) -> None:
        """Note the iteration a step is at; the first one noted is where its training started or resumed."""
        known = self._running[node.key]
        known.first = iteration if known.first is None else known.first
        known.now, known.total = iteration, total

    def back(self, node: Node, reason: str) -> None:
        """Say that a step that had begun waits again; later it resumes from its checkpoint."""
        known = self._running.pop(node.key)
        self._worked += known.worked()
        self.note(f"waits   {node.name}  {reason}")

    def done(self, node: Node, seconds: float) -> None:
        """Say that a step is done, and its scores."""
        self._end(node, finished=True)
        self._done += 1
        self.note(f"done    {node.name}  {self._scores(node)} ({describe_seconds(seconds)}; {self.counts()})")

    def failed(self, node: Node, reason: str, log: Path | None) -> None:
        """Say that a step has failed, why, and where its log is."""
        self._end(node, finished=False)
        self._failed += 1
        self.note(f"failed  {node.name}  {reason}" + (f" (log: {log})" if log else ""))

    def note(self, text: str) -> None:
        """Write a line that stays."""
        print(text, file=self._stream, flush=True)

    def warn(self, text: str) -> None:
        """Write a line of trouble, which no view hides."""
        self.note(text)

    def refresh(self) -> None:
        """Redraw what moves."""

    def close(self) -> None:
        """End what is shown."""

    def counts(self) -> str:
        """Return ``2 running, 7 of 20 done, 1 failed, 14 min left``."""
        failed = f", {self._failed} failed" if self._failed else ""
        seconds = self.seconds_left()
        left = "" if seconds is None else f", {describe_seconds(seconds)} left"
        return f"{len(self._running)} running, {self._done} of {self._total} done{failed}{left}"

    def seconds_left(self) -> float | None:
        """Return the seconds left at the pace so far, None as long as nothing was trained."""
        worked = self._worked + sum(known.worked() for known in self._running.values())
        if not worked:
            return None
        remaining = self._remaining - sum(known.now for known in self._running.values())
        return (time.monotonic() - self._began) * max(0, remaining) / worked

    def _end(self, node: Node, finished: bool) -> None:
        known = self._running.pop(node.key, None)
        if node.to_train:
            self._remaining -= node.iterations
            # A step without any progress was trained elsewhere meanwhile: it says nothing about the pace here.
            if known is not None and finished and known.first is not None:
                self._worked += node.iterations - known.first


class LiveView(SweepView):
    """The table on a terminal, redrawn below the lines that stay."""

    _height = 0
    _last = 0.0

    def note(self, text: str) -> None:
        """Write the line above the table."""
        self._clear()
        super().note(text)
        self._draw()

    def refresh(self) -> None:
        """Redraw the table, at most twice a second."""
        if time.monotonic() - self._last >= REFRESH_SECONDS:
            self._clear()
            self._draw()

    def close(self) -> None:
        """Take the table off the screen."""
        self._clear()

    def _draw(self) -> None:
        size = shutil.get_terminal_size()
        rows = [f"  {known.node.name:<60} {known.now:>7}/{known.total}" for known in self._running.values()]
        lines = [line[: size.columns - 1] for line in [self.counts(), *rows[: size.lines - 3]]]
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()
        self._height, self._last = len(lines), time.monotonic()

    def _clear(self) -> None:
        if self._height:
            unescaped(self._stream).write(f"\x1b[{self._height}F\x1b[J")
            self._height = 0


class SilentView(SweepView):
    """Shows trouble alone."""

    def note(self, text: str) -> None:
        """Write nothing."""

    def warn(self, text: str) -> None:
        """Write the line."""
        super().note(text)


def make_sweep_view(scores: Callable[[Node], str], quiet: bool = False) -> SweepView:
    """Return the view for standard error: the live table on a terminal, lines elsewhere."""
    kind = SilentView if quiet else LiveView if sys.stderr.isatty() else SweepView
    return kind(sys.stderr, scores)
