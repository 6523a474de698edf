"""Step 1 of a method on random images, on any device: for the test of what a GPU waits for, and for ``bench.py``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cispbench.harness.data.normalise import Normalisation, Statistics
from cispbench.harness.machine.devices import to_device
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.machine.seeds import seed_everything
from cispbench.harness.method import Batch, StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.fields import Precision
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method, make_method
from cispbench.harness.step import TRAIN
from cispbench.harness.training.hooks import Hooks
from cispbench.harness.training.iteration import PhaseTraining
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.training.services import StepServices
from cispbench.harness.training.state import TrainingState
from cispbench.splits.settings import parse_setting


@dataclass(frozen=True)
class Case:
    """What is trained: a ``method`` of the ``profile`` with a ``model``, images of ``size`` pixels, ``batch`` of them.

    ``batch``: None for the recipe's.
    """

    method: str
    model: str
    size: int
    batch: int | None = None
    precision: Precision = "bf16"
    profile: str = "paper"
    setting: str = "overlapped-15-1"


class RandomImages:
    """Stands in for the loader: a few batches of noise, with labels of the step and void, in pinned memory.

    As from the loader, 8-bit pixels go to the device and become images there, in the memory format of channels_last.
    """

    def __init__(
        self, batch: int, size: int, labels: tuple[int, ...], statistics: Statistics, device: torch.device
    ) -> None:
        generator, places = torch.Generator().manual_seed(0), torch.tensor(labels)
        self._normalise, self._batches = Normalisation(statistics, device), []
        for number in range(2):
            pixels = torch.randint(256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
            target = places[torch.randint(len(labels), (batch, size // 8, size // 8), generator=generator)]
            target = target.repeat_interleave(8, 1).repeat_interleave(8, 2)
            if device.type == "cuda":
                pixels, target = pixels.pin_memory(), target.pin_memory()
            self._batches.append(Batch(pixels, target, tuple(f"{number}_{place}" for place in range(batch))))

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for pixels in self._batches[start:]:
            yield replace(pixels.to(self._normalise.device), images=self._normalise(pixels.images))

    def close(self) -> None:
        """There are no workers."""


def batch_of(case: Case) -> int:
    """Return how many images a case trains on at once: its own number, or the recipe's."""
    if case.batch is not None:
        return case.batch
    recipe = load_recipe(load_method(case.method), parse_setting(case.setting), case.profile, case.model)
    return recipe.phase(1, TRAIN).batch


def begin(case: Case, device: torch.device, iterations: int) -> PhaseTraining:
    """Return the iterations of step 1, whose hooks before them have been called."""
    seed_everything(0)
    setting, cls = parse_setting(case.setting), load_method(case.method)
    recipe = load_recipe(cls, setting, case.profile, case.model)
    method, step = make_method(cls, recipe.method), 1
    model = build_model(case.model, case.size)
    model.grow(method.layout(setting, 0))
    previous = copy.deepcopy(model).eval().requires_grad_(False)
    model.grow(method.layout(setting, step))
    old, new = setting.old_classes(step), setting.new_classes(step)
    context = StepContext(setting, step, old, new, to_device(model, device), to_device(previous, device))
    (phase,) = method.phases(setting, step)
    chosen = recipe.phase(step, phase)
    batch = batch_of(case)
    chosen = replace(chosen, batch=batch, iterations=iterations, epochs=None, precision=case.precision, warmup=0)
    labels = (0, *range(old, old + new), 255)
    loader: Any = RandomImages(batch, case.size, labels, recipe.data.normalise, device)
    job = TrainingJob(
        method=method, context=context, phases={phase: chosen}, loader=lambda _: loader, device=device, seed=0,
        checkpoint=Path("none"), view=ProgressView(), images=2 * batch,
    )  # fmt: skip
    state = TrainingState(job)
    services = StepServices(job, state.phase.loader)
    context = replace(context, phase=phase, generator=state.generator, services=services)
    hooks = Hooks(job, state.generator)
    hooks.initialise(context, case.precision)
    hooks.before_training(context, case.precision)
    state.begin_phase()
    assert state.stepper is not None
    return PhaseTraining(job, state, state.stepper, context, services)
