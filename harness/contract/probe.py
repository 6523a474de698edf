"""Probes: a step of the main training taken up again, and trained for a few iterations on chosen batches."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cispbench.harness.contract.bench import SEED, Bench
from cispbench.harness.contract.sources import Lens
from cispbench.harness.contract.trace import LossCall, Stop, Trace, copy_of
from cispbench.harness.contract.witness import watched
from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.machine.seeds import derive_seed
from cispbench.harness.method import Batch, StepContext
from cispbench.harness.recipes.fields import Precision
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.training.loop import StepTraining
from cispbench.splits.settings import Setting


class FixedLoader(TrainLoader):
    """Given batches in the place of a step's data: ``measured`` to the first reader, who prepares the training."""

    def __init__(self, measured: Sequence[Batch], trained: Sequence[Batch]) -> None:
        self._measured, self._trained = list(measured), list(trained)
        self._readers = 0

    def __len__(self) -> int:
        return len(self._trained)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over copies, so that one training leaves the next one's batches alone."""
        self._readers += 1
        batches = self._measured if self._readers == 1 else self._trained[start:]
        return (Batch(batch.images.clone(), batch.target.clone(), batch.ids) for batch in batches)


@dataclass(frozen=True)
class Probe:
    """What differs from the step as it was trained.

    ``trained``: the batches, an iteration each. ``measured``: those for ``before_training``, by default the step's
    own. ``seed``: by default that of the step. ``from_end``: with the weights the step ended with, instead of those
    it started with. ``previous_learns``: the previous model's parameters ask for gradients. ``prepare`` is given the
    context last of all and may change its models.
    """

    trained: Sequence[Batch]
    measured: Sequence[Batch] | None = None
    setting: Setting | None = None
    precision: Precision = "fp32"
    seed: int | None = None
    from_end: bool = False
    previous_learns: bool = False
    prepare: Callable[[StepContext], None] | None = None


def train(bench: Bench, step: int, probe: Probe) -> Trace:
    """Train a step of the main training again as the probe says, and return what was seen."""
    seen, trace = bench.finished.steps[step], Trace(bench.model, bench.setting.name)
    method = watched(bench.make(), trace, Lens())
    model, previous = copy.deepcopy(seen.start), copy.deepcopy(seen.previous)
    if previous is not None:
        previous.requires_grad_(probe.previous_learns)
    setting = probe.setting or bench.setting
    context = StepContext(setting, step, seen.old_classes, seen.new_classes, model, previous)
    phase = replace(bench.recipe().phase(step), iterations=len(probe.trained), epochs=None, precision=probe.precision)
    try:
        if seen.kept_before is not None:
            method.load_state_dict(copy_of(seen.kept_before))
        method.initialise(context)
        if probe.from_end and seen.end is not None:
            model.load_state_dict(seen.end)
        if probe.prepare is not None:
            probe.prepare(context)
        measured = probe.measured or seen.measured or [call.batch for call in seen.calls]
        with tempfile.TemporaryDirectory() as folder:
            StepTraining(
                TrainingJob(
                    method=method,
                    context=context,
                    loader=FixedLoader(measured, probe.trained),
                    phase=phase,
                    device=torch.device("cpu"),
                    seed=derive_seed(SEED, "training", step) if probe.seed is None else probe.seed,
                    checkpoint=Path(folder) / "none",
                    view=ProgressView(),
                    images=len(measured),
                )
            ).run()
    except Exception as error:  # noqa: BLE001 (whatever a plug-in brings about is a finding)
        trace.stop = Stop(trace.failing, error)
    return trace


def first_batch(bench: Bench, step: int) -> Batch:
    """Return the batch that the step's training began with."""
    return bench.finished.steps[step].calls[0].batch


def last_step(bench: Bench) -> int:
    """Return the last step of the main training."""
    return len(bench.finished.steps) - 1


def own_steps(bench: Bench) -> tuple[int, ...]:
    """Return the steps to probe: the last one, and step 0 unless it is shared, hence plain."""
    last = last_step(bench)
    return (last,) if bench.cls.shared_base and last > 0 else tuple(dict.fromkeys((0, last)))


def values(call: LossCall) -> dict[str, float]:
    """Return a call's terms as numbers."""
    return {name: float(term) for name, term in call.terms.items()}
