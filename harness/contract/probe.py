"""Train a step of the main training again, for a few iterations on chosen batches."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cispbench.harness.contract.bench import SEED, Bench
from cispbench.harness.contract.recorded import RecordedTraining, copy_batch, copy_state
from cispbench.harness.contract.recorder import recorder
from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.machine.seeds import derive_seed
from cispbench.harness.method import Batch, StepContext
from cispbench.harness.recipes.fields import Precision
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.training.loop import StepTraining
from cispbench.splits.settings import Setting


def train_again(
    bench: Bench,
    step: int,
    batches: Sequence[Batch],
    *,
    measured: Sequence[Batch] | None = None,
    setting: Setting | None = None,
    precision: Precision = "fp32",
    seed: int | None = None,
    micro_batch: int | None = None,
    from_end: bool = False,
    previous_learns: bool = False,
    prepare: Callable[[StepContext], None] | None = None,
) -> RecordedTraining:
    """Train a step again with one iteration per batch, and return the recorded training, even if it failed.

    ``measured``: the batches for ``before_training``; those of the main training if not given. ``from_end``: begin
    with the weights at the end of the step, not at its start. ``previous_learns``: the previous model's parameters
    require gradients. ``prepare`` is called last before the training, and may change the models.
    """
    seen, training = bench.finished.steps[step], RecordedTraining(bench.model, bench.setting.name)
    phase = replace(bench.recipe().phase(step), iterations=len(batches), epochs=None, precision=precision)
    loader = _FixedLoader(measured or seen.measured or [call.batch for call in seen.calls], batches)
    seed = derive_seed(SEED, "training", step) if seed is None else seed

    def start(context: StepContext) -> None:
        if from_end:
            context.model.load_state_dict(seen.end)
        if prepare is not None:
            prepare(context)

    try:
        method = recorder(bench.make, training, initialised=start)
        model, previous = copy.deepcopy((seen.context.model, seen.context.previous))
        if previous is not None:
            previous.requires_grad_(previous_learns)
        context = replace(seen.context, setting=setting or bench.setting, model=model, previous=previous)
        if seen.state_before is not None:
            method.load_state_dict(copy_state(seen.state_before))
        with tempfile.TemporaryDirectory() as folder:
            # The one place here that knows how the training loop is called.
            job = TrainingJob(method=method, context=context, loader=lambda *_: loader, phases={"train": phase},
                              device=torch.device("cpu"), seed=seed, checkpoint=Path(folder) / "none",
                              view=ProgressView(), images=len(batches), micro_batch=micro_batch)  # fmt: skip
            log = StepTraining(job).run()
        training.logged = {name: values[-1] for name, values in log.terms.items()}
    except Exception as error:  # noqa: BLE001 (whatever a plug-in raises is a violation)
        training.error = error
    return training


class _FixedLoader(TrainLoader):
    """Gives the batches ``measured`` to the first reader, which is ``before_training``, and then ``trained``."""

    def __init__(self, measured: Sequence[Batch], trained: Sequence[Batch]) -> None:
        self._measured, self._trained = list(measured), list(trained)
        self._readers = 0

    def __len__(self) -> int:
        return len(self._trained)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield copies: a method that writes to a batch must not spoil the next training."""
        self._readers += 1
        batches = self._measured if self._readers == 1 else self._trained[start:]
        return (copy_batch(batch) for batch in batches)


def first_batch(bench: Bench, step: int) -> Batch:
    """Return the first batch of the step's training."""
    return bench.finished.steps[step].calls[0].batch


def last_step(bench: Bench) -> int:
    """Return the last step of the main training."""
    return len(bench.finished.steps) - 1


def own_steps(bench: Bench) -> tuple[int, ...]:
    """Return the last step, and step 0 unless it is the shared base, which is plain cross-entropy."""
    last = last_step(bench)
    return (last,) if bench.cls.shared_base and last > 0 else tuple(dict.fromkeys((0, last)))
