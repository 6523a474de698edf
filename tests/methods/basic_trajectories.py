"""The trajectories on the basic-block DeepLabV3 whose images and parameters are computed, not stored.

tests/golden/README.md has the formulas. They are shared by EWC, PI, RW, EWF and REMINDER.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cispbench.harness.method import Batch, Method, StepContext
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.models.released import load_released, translate
from cispbench.splits.settings import Setting, Step
from tests.methods.conftest import TURN, _deeplab, _formula
from tests.methods.test_golden import recorded as read

NAMES = "trajectory_basic_parameters.json"


def wave(shape: tuple[int, ...], place: int) -> Tensor:
    """Return v of the formula in float64, for the parameter or image number ``place``."""
    k = np.arange(math.prod(shape), dtype=np.float64)
    return torch.from_numpy(np.sin(0.37 * k + 1.7 * place + np.mod(0.011 * k * k, TURN))).view(shape)


@dataclass
class BasicTrajectory:
    """One recorded trajectory, and what our own code made of it so far."""

    golden: Path
    name: str
    recorded: Mapping[str, Tensor] = field(init=False)
    terms: dict[str, list[float]] = field(default_factory=dict)  # of the training before, by iteration

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

    def grown(self, model: IncrementalModel) -> tuple[IncrementalModel, IncrementalModel]:
        """Return the model grown by the new classes, and the frozen previous one."""
        previous = copy.deepcopy(model).eval().requires_grad_(False)
        model.grow(self.new)
        return model, previous

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
