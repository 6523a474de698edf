"""Plan a sweep: every run by the one road of ``runs/prepare.py``, then all their steps as one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.runs.plan import RunPlan
from cispbench.harness.runs.prepare import PartitionedError, Preparer, UnservedError
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_store import StepStore
from cispbench.splits.errors import UsageError


@dataclass(frozen=True)
class LeftOut:
    """A method that does not serve a setting, and why."""

    method: str
    setting: str
    reason: str


@dataclass(frozen=True)
class SweepPlan:
    """The plans of all runs; ``without_data`` names the data sets that only published counts stand for."""

    runs: tuple[RunPlan, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    without_data: tuple[str, ...]


def plan_sweep(requests: Sequence[RunRequest], steps: StepStore, view: ProgressView, *, plan_only: bool) -> SweepPlan:
    """Plan the runs in their order; ``plan_only``: nothing will be trained, so data and weights may be missing.

    A method that declines a setting is left out with its reason. Raises CispbenchError; UsageError if every run is
    left out.
    """
    notes = _Notes(view)
    preparer = Preparer(steps, notes, plan_only=plan_only)
    runs: list[RunPlan] = []
    left_out: dict[tuple[str, str], LeftOut] = {}
    for request in requests:
        pair = (request.method, request.setting)
        if pair in left_out:  # with another seed
            continue
        try:
            runs.append(preparer.prepare(request))
        except (UnservedError, PartitionedError) as error:
            left_out[pair] = LeftOut(*pair, error.reason)
    if not runs:
        reasons = "; ".join(f"{entry.method} on {entry.setting}: {entry.reason}" for entry in left_out.values())
        raise UsageError(f"nothing is left of the sweep: {reasons}.")
    return SweepPlan(tuple(runs), tuple(left_out.values()), tuple(notes.lines), preparer.without_data())


class _Notes(ProgressView):
    """Keeps each note once, in their order, and shows the progress of reading masks on ``view``."""

    def __init__(self, view: ProgressView) -> None:
        self._view = view
        self.lines: dict[str, None] = {}

    def note(self, text: str) -> None:
        self.lines[text] = None

    def counting(self, what: str, done: int, total: int) -> None:
        self._view.counting(what, done, total)
