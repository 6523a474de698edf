"""The trajectories on the basic-block DeepLabV3 whose images and parameters are computed, not stored.

tests/golden/README.md has the formulas. They are shared by EWC, PI, RW, EWF and REMINDER.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Batch, Method, StepContext
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.models.released import load_released, translate
from cispbench.harness.recipes.fields import OptimRecipe, Recipe
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method
from cispbench.harness.training.job import TrainingJob, TrainingLog
from cispbench.harness.training.loop import StepTraining
from cispbench.splits.settings import Setting, Step, parse_setting
from tests.methods.conftest import TURN, RecordedBatches, _deeplab, _formula
from tests.methods.test_golden import recorded as read

NAMES = "trajectory_basic_parameters.json"


def wave(shape: tuple[int, ...], place: int) -> Tensor:
    """Return v of the formula in float64, for the parameter or image number ``place``."""
    k = np.arange(math.prod(shape), dtype=np.float64)
    return torch.from_numpy(np.sin(0.37 * k + 1.7 * place + np.mod(0.011 * k * k, TURN))).view(shape)


@dataclass
class BasicTrajectory:
    """One recorded trajectory: its batches, its networks and where they must end."""

    golden: Path
    name: str
    recorded: Mapping[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.recorded = read(self.golden, f"trajectory_{self.name}")
        self.old, self.new = self.recorded["classes_per_step"].tolist()
        step = Step(0, tuple(range(1, self.old))), Step(1, tuple(range(self.old, self.old + self.new)))
        self.setting = Setting("overlapped-3-2", "voc", "overlapped", "3-2", "natural", step)

    def batches(self, step: int) -> list[Batch]:
        """Return the batches of step 0, where it is recorded, or 1."""
        targets = self.recorded["targets" if step else "step0_targets"].long()
        (count, size, side), seed = targets.shape[:3], int(self.recorded["image_seed"]) + 1 - step
        t, b = torch.arange(count).view(-1, 1, 1, 1, 1), torch.arange(size).view(1, -1, 1, 1, 1)
        images = wave((count, size, 3, side, side), seed) * (0.4 + 0.5 * b) + 0.6 * b - 0.3 * (t % 3)
        ids = tuple(map(str, range(size)))
        return [Batch(x.float(), y, ids) for x, y in zip(images, targets, strict=True)]

    def network(self) -> IncrementalModel:
        """Return the network of the old classes, with the formula's parameters."""
        state = dict(_formula(self.golden / NAMES))
        state["cls.0.weight"] = state["cls.0.weight"] * float(self.recorded["classifier_scale"])
        state["cls.0.bias"] = torch.linspace(0.4, -0.4, self.old)
        model = _deeplab({key: value.numpy() for key, value in self.recorded.items()})
        load_released(model, translate(state, "abn-deeplab", self.name), self.name)
        return model

    def step(self, number: int, model: IncrementalModel) -> StepContext:
        """Return the context of step 0, or 1, for which the model is grown."""
        previous = None
        if number:
            previous = copy.deepcopy(model).eval().requires_grad_(False)
            model.grow(self.new)
        old, new = (self.old, self.new) if number else (0, self.old)
        return StepContext(self.setting, number, old, new, model, previous)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return what is recorded of parameters after ``prefix``, by our names."""
        found = {key.removeprefix(prefix): value for key, value in self.recorded.items() if key.startswith(prefix)}
        return {self.ours(key): value for key, value in found.items() if not key.endswith("num_batches_tracked")}

    def ours(self, name: str) -> str:
        """Return our name of a released parameter."""
        value = torch.zeros(1)
        names = translate({name: value, "cls.0.bias": value, "x.num_batches_tracked": value.long()}, "abn-deeplab", "")
        return next(iter(names.state))

    def logits(self, model: IncrementalModel) -> Tensor:
        """Return the logits of the first batch in evaluation mode, at every fourth pixel."""
        with torch.no_grad():
            logits: Tensor = model.eval()(self.batches(1)[0].images).logits[..., ::4, ::4]
            return logits


class Loader(RecordedBatches):
    """Stands in for the loader of images: the given batches."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches


def recipe_of(name: str, *overrides: str) -> Recipe:
    """Return the recipe of the paper, under which the released code took the recorded steps."""
    return load_recipe(load_method(name), parse_setting("overlapped-15-1"), "paper", overrides=overrides)


def phase_of(recipe: Recipe, step: int, recorded: Mapping[str, Any]) -> OptimRecipe:
    """Return the recipe of a step with the recorded rate, batch and length, in single precision."""
    phase = recipe.phase(step)
    assert (phase.schedule, phase.nesterov) == ("poly", True)
    for ours, name in ((phase.momentum, "momentum"), (phase.weight_decay, "weight_decay"), (phase.power, "poly_power")):
        assert ours == pytest.approx(float(recorded[name]))
    lr, batch, epochs = float(recorded["lr"]), int(recorded["batch"]), float(recorded["epochs"])
    return dataclasses.replace(phase, lr=lr, batch=batch, epochs=epochs, precision="fp32")


def train(
    method: Method, context: StepContext, trajectory: BasicTrajectory, recipe: Recipe, scratch: Path
) -> TrainingLog:
    """Train a step, its initialisation included."""
    batches, phase = trajectory.batches(context.step), phase_of(recipe, context.step, trajectory.recorded)
    job = TrainingJob(
        method=method, context=context, loader=lambda _: Loader(batches),  # type: ignore[arg-type, return-value]
        phases={"train": phase}, device=torch.device("cpu"), seed=0,
        checkpoint=scratch / f"{trajectory.name}-{context.step}.pt", view=ProgressView(), images=len(batches),
    )  # fmt: skip
    return StepTraining(job).run()
