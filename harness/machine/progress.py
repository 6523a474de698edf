"""The live view of a training: a bar on a terminal, one plain line a minute elsewhere, always on standard error.

The view is given numbers, never tensors: whoever calls it decides when a value is moved to the host. tqdm draws the
bars. For logs it would write a bar each time, hence the lines of our own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TextIO

INTERVAL_SECONDS = 60.0


class ProgressView:
    """Show nothing: for ``quiet``, and for all processes but the first. The other views override its methods.

    ``start_step``, then any number of ``update``, then any number of ``evaluating``, then ``end_step``; ``counting``
    stands for every other long work, ``note`` may come at any time, and ``close`` ends whatever is shown.
    """

    def start_step(self, step: int, steps: int, classes: str, images: int, iterations: int, start: int = 0) -> None:
        """Begin step ``step`` (from 0) of ``steps``, of which ``start`` out of ``iterations`` are done already."""

    def update(self, iteration: int, terms: Mapping[str, float], images_per_second: float) -> None:
        """Show that ``iteration`` iterations are done, the last one's weighted loss terms and the speed."""

    def counting(self, what: str, done: int, total: int) -> None:
        """Show how far some other work is ("reading masks"); it ends with ``done == total``."""

    def evaluating(self, done: int, total: int) -> None:
        """Show how many test images of the step are evaluated."""
        self.counting("evaluating", done, total)

    def end_step(self, line: str) -> None:
        """End the step with a line that stays (its scores)."""

    def note(self, text: str) -> None:
        """Show a line that stays."""

    def warn(self, text: str) -> None:
        """Show a line on standard error under ``quiet``, too; the other views show it as any note."""
        with suppress(OSError, ValueError):  # a reader that is gone
            print(text, file=sys.stderr, flush=True)

    def waiting(self, text: str) -> None:
        """Say in a line that stays that the work waits for another process."""
        self.note(text)

    def close(self) -> None:
        """End what is shown; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Countdown:
    """Work that is counted: its name, its total, and the clock and the count at its beginning."""

    what: str
    total: int
    began: float
    first: int

    def describe(self, label: str, done: int, now: float) -> tuple[str, str]:
        """Return ``label 120/3000 (4 %)`` and ``14 min left``."""
        left = "time left unknown"
        if done > self.first:
            left = describe_seconds((now - self.began) * (self.total - done) / (done - self.first)) + " left"
        return f"{label} {done}/{self.total} ({100 * done // max(self.total, 1)} %)", left


class PlainView(ProgressView):
    """Lines for a log: a step's beginning and end, and in between one line per ``interval`` seconds of ``clock``."""

    def __init__(
        self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic, interval: float = INTERVAL_SECONDS
    ) -> None:
        self._stream: TextIO | None = stream
        self._clock = clock
        self._interval = interval
        self._last = clock()  # when the last line was due
        self._step: _Countdown | None = None
        self._counted: _Countdown | None = None

    def start_step(self, step: int, steps: int, classes: str, images: int, iterations: int, start: int = 0) -> None:
        """Write what the step learns, and start its clock."""
        resumed = f" from {start}" if start else ""
        length = number_of(iterations, "iteration")
        self.note(f"{describe_step(step, steps, classes, images)}, {length}{resumed}")
        self._last = self._clock()
        self._step = _Countdown(f"step {step}/{steps - 1}", iterations, self._last, start)

    def update(self, iteration: int, terms: Mapping[str, float], images_per_second: float) -> None:
        """Write a line if one is due."""
        if self._step is not None and self._due():
            done, left = self._step.describe("iteration", iteration, self._last)
            speed = f"{images_per_second:.1f} images/s"
            self.note(f"{self._step.what}: {done}, {describe_loss(terms)}, {speed}, {left}")

    def counting(self, what: str, done: int, total: int) -> None:
        """Write a line if one is due; short work leaves no trace."""
        if self._counted is None or self._counted.what != what:
            self._counted = _Countdown(what, total, self._clock(), done)
        if self._due() and done < total:
            self.note(", ".join(self._counted.describe(what, done, self._last)))
        if done >= total:
            self._counted = None

    def end_step(self, line: str) -> None:
        """Write the line."""
        self._step = self._counted = None
        self.note(line)

    def note(self, text: str) -> None:
        """Write the line; once nobody can read the stream, write nothing more."""
        if self._stream is None:
            return
        try:
            print(text, file=self._stream, flush=True)
        except (OSError, ValueError):
            # The reader is gone (closed pipe, lost terminal). Hours of training must not end for a lost line.
            self._stream = None

    warn = note

    def _due(self) -> bool:
        now = self._clock()
        if now - self._last < self._interval:
            return False
        self._last = now
        return True


class BarView(ProgressView):
    """tqdm bars on a terminal, one for the step and below it one for what is counted; lines that stay go above."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._step: Any = None
        self._counted: Any = None

    def start_step(self, step: int, steps: int, classes: str, images: int, iterations: int, start: int = 0) -> None:
        """Write what the step learns, and open its bar."""
        self.end_step(describe_step(step, steps, classes, images))
        self._step = self._open(f"step {step}/{steps - 1}", iterations, start)

    def update(self, iteration: int, terms: Mapping[str, float], images_per_second: float) -> None:
        """Move the step's bar."""
        if self._step is not None:
            self._step.set_postfix_str(f"{describe_loss(terms)}, {images_per_second:.1f} images/s", refresh=False)
            self._step.update(iteration - self._step.n)

    def counting(self, what: str, done: int, total: int) -> None:
        """Open the second bar, move it, and close it at the end."""
        if self._counted is None or self._counted.desc != what:
            self._end_counting()
            self._counted = self._open(what, total, done)
        self._counted.update(done - self._counted.n)
        if done >= total:
            self._end_counting()

    def end_step(self, line: str) -> None:
        """Close the bars and write the line."""
        self.close()
        self.note(line)

    def note(self, text: str) -> None:
        """Write the line above the bars."""
        from tqdm import tqdm  # takes 30 ms, which ``cispbench --help`` need not spend

        # A lost terminal must not end a training. The bars themselves bear it: tqdm catches such errors there.
        with suppress(OSError, ValueError):
            tqdm.write(text, file=self._stream)

    warn = note

    def close(self) -> None:
        """Take the bars off the screen."""
        self._end_counting()
        if self._step is not None:
            self._step.close()
        self._step = None

    def _end_counting(self) -> None:
        if self._counted is not None:
            self._counted.close()
        self._counted = None

    def _open(self, what: str, total: int, start: int) -> Any:
        from tqdm import tqdm

        # Images a second, in the postfix, compare between batch sizes; iterations a second do not, and are left out.
        shape = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        return tqdm(
            desc=what, total=total, initial=start, file=self._stream, bar_format=shape, leave=False,
            dynamic_ncols=True, miniters=1,
        )  # fmt: skip


def make_view(stream: TextIO | None = None, quiet: bool = False) -> ProgressView:
    """Return the view that suits ``stream`` (standard error by default): bars on a terminal, else plain lines."""
    if quiet:
        return ProgressView()
    stream = sys.stderr if stream is None else stream
    return BarView(stream) if stream.isatty() else PlainView(stream)


def index_progress(view: ProgressView) -> Callable[[int, int], None]:
    """Return the callback ``progress(done, total)`` that shows the reading of a data set's masks on ``view``."""
    return lambda done, total: view.counting("reading masks", done, total)


def describe_step(step: int, steps: int, classes: str, images: int) -> str:
    """Say what a step learns: ``step 1/5: classes 16-20, 487 images``."""
    return f"step {step}/{steps - 1}: classes {classes}, {number_of(images, 'image')}"


def number_of(count: int, noun: str) -> str:
    """Return ``1 step`` or ``2 steps``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def describe_loss(terms: Mapping[str, float]) -> str:
    """Write a loss as the sum of its terms: ``loss 0.53 = ce 0.31 + kd 0.22``."""
    parts = " + ".join(f"{name} {_short(value)}" for name, value in terms.items())
    return f"loss {_short(sum(terms.values()))}" + (f" = {parts}" if parts else "")


def describe_seconds(seconds: float) -> str:
    """Write a duration in its two largest units: ``2 d 3 h``, ``3 h 25 min``, ``4 min``, ``12 s``."""
    minutes = round(seconds / 60)
    if minutes >= 24 * 60:
        return f"{minutes // 1440} d {minutes % 1440 // 60} h"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"


def _short(value: float) -> str:
    """Write two decimals, or the two leading digits of what would be 0.00."""
    return f"{value:.2f}" if value == 0 or not abs(value) < 0.01 else f"{value:.1e}"
