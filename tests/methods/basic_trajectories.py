"""The trajectories on the basic-block DeepLabV3 whose images and parameters are computed, not stored.

tests/golden/README.md has the formulas. They are shared by EWC, PI, RW, EWF and REMINDER.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
        return StepContext(
            self.setting, number, old, new, model, previous, services=Services(self.batches(number))
        )  # fmt: skip

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


class Services:
    """What the harness does for a method in a training on recorded batches."""

    def __init__(self, batches: list[Batch]) -> None:
        self.recorded, self.terms = batches, dict[str, list[float]]()

    def batches(self, view: str, size: int | None, ids: object) -> Iterator[Batch]:
        """Return a new pass."""
        return iter(self.recorded)

    def batch_sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor: there is one device."""
        return tensor

    def log(self, name: str, value: Tensor) -> None:
        """Keep a number of the iteration."""
        self.terms.setdefault(name, []).append(float(value.detach()))


def train(
    method: Method, context: StepContext, recorded: Mapping[str, Tensor], frozen: tuple[str, ...] = ()
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Train an initialised step for one epoch, calling the hooks in the order of the contract.

    Parameters whose names begin with ``frozen`` are not learnt. Returns every term by iteration, and the network before
    ``after_training``.
    """
    services, model, lr = context.services, context.model, float(recorded["lr"])
    assert isinstance(services, Services)
    with torch.no_grad():
        method.before_training(context, services.batches("train", None, None))
    learnt = {name: value for name, value in model.named_parameters() if not frozen or not name.startswith(frozen)}
    optimizer = torch.optim.SGD(learnt.values(), lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    model.train()
    for iteration, batch in enumerate(services.recorded):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - iteration / len(services.recorded)) ** float(recorded["poly_power"])
        previous = None
        if context.previous is not None and method.reads_previous:
            with torch.no_grad():
                previous = context.previous(*batch.inputs)
        terms = method.losses(batch, model(*batch.inputs), previous, context)
        for name, value in terms.items():
            services.log(name, value)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        gradients = {name: value.grad for name, value in learnt.items() if value.grad is not None}
        method.after_gradients(gradients, context)
        optimizer.step()
    before = {name: value.clone() for name, value in model.eval().state_dict().items()}
    with torch.no_grad():
        method.after_training(context)
    return services.terms, before
