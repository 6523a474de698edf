"""Train a step of the main training again, for a few iterations on chosen batches."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from cispbench.harness.step import View
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.training.loop import StepTraining
from cispbench.splits.settings import Setting


def train_again(
    bench: Bench,
    step: int,
    batches: Sequence[Batch],
    *,
    phase: str | None = None,
    seen_as: Callable[[Batch], Batch] = copy_batch,
    setting: Setting | None = None,
    precision: Precision = "fp32",
    seed: int | None = None,
    micro_batch: int | None = None,
    from_end: bool = False,
    previous_learns: bool = False,
    prepare: Callable[[StepContext], None] | None = None,
) -> RecordedTraining:
    """Train a phase of a step again with one iteration per batch, and return the recorded training, even if it failed.

    ``batches``: as they are loaded, before the method's ``prepare``. ``phase``: by default the step's last one.
    ``seen_as``: changes every batch, those of ``context.batches()`` too. ``from_end``: begin with the weights at the
    end of the step, not at its start. ``previous_learns``: the previous model's parameters require gradients.
    ``prepare`` is called last before the training, and may change the models.
    """
    seen, training = bench.finished.steps[step], RecordedTraining(bench.model, bench.setting.name)
    phase = phase or seen.phases[-1]
    recipe = replace(bench.recipe().phase(step, phase), iterations=len(batches), epochs=None, precision=precision)
    loader = _FixedLoader([seen_as(batch) for batch in batches])

    def passes(view: View, size: int | None, ids: Sequence[str] | None) -> Iterable[Batch]:
        return (seen_as(batch) for batch in seen.passes[phase](view, size, ids))

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
            job = TrainingJob(method=method, context=context, loader=lambda *_: loader, phases={phase: recipe},
                              device=torch.device("cpu"), seed=seed, checkpoint=Path(folder) / "none",
                              view=ProgressView(), images=len(batches), micro_batch=micro_batch,
                              passes=lambda _: passes)  # fmt: skip
            log = StepTraining(job).run()
        training.logged = {name: values[-1] for name, values in log.terms.items()}
    except Exception as error:  # noqa: BLE001 (whatever a plug-in raises is a violation)
        training.error = error
    return training


class _FixedLoader(TrainLoader):
    """Gives the batches that it is made of."""

    def __init__(self, trained: Sequence[Batch]) -> None:
        self._trained = list(trained)

    def __len__(self) -> int:
        return len(self._trained)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield copies: a method that writes to a batch must not spoil the next training."""
        return (copy_batch(batch) for batch in self._trained[start:])


def first_batch(bench: Bench, step: int, phase: str | None = None) -> Batch:
    """Return the first batch of a phase of the step, by default of the last one."""
    seen = bench.finished.steps[step]
    return seen.batches_of(phase or seen.phases[-1])[0]


def last_step(bench: Bench) -> int:
    """Return the last step of the main training."""
    return len(bench.finished.steps) - 1


def own_steps(bench: Bench) -> tuple[int, ...]:
    """Return the last step, and step 0 unless it is the shared base, which is plain cross-entropy."""
    last = last_step(bench)
    return (last,) if bench.method.shared_base and last > 0 else tuple(dict.fromkeys((0, last)))


def phases_in(bench: Bench, steps: Iterable[int]) -> list[tuple[int, str]]:
    """Return the phases of these steps, each with its step."""
    return [(step, phase) for step in steps for phase in bench.finished.steps[step].phases]


def freeze_mode(context: StepContext) -> None:
    """Keep the model out of training mode: batch norms and dropout depend on which images are together in a batch."""
    model = context.model.eval()
    vars(model)["train"] = lambda mode=True: model
