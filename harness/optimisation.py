"""Optimiser, schedule and mixed precision of one step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.recipe import OptimRecipe

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def lr_factor(phase: OptimRecipe, iteration: int, iterations: int) -> float:
    """Return the schedule's factor at ``iteration`` (from 0) of ``iterations``: poly (1 - i/n)^power, or 1.

    During the ``warmup`` iterations it is multiplied by (i + 1) / warmup.
    """
    factor = 1.0 if phase.schedule == "constant" else (1.0 - iteration / iterations) ** phase.power
    if iteration < phase.warmup:
        factor *= (iteration + 1) / phase.warmup
    return factor


def build_optimizer(model: IncrementalModel, phase: OptimRecipe) -> torch.optim.SGD:
    """Return SGD with one group a section; each group's ``base_lr`` is what the schedule multiplies."""
    rates = {"encoder": phase.lr * phase.encoder_lr, "decoder": phase.lr, "classifier": phase.lr * phase.classifier_lr}
    groups: dict[str, list[nn.Parameter]] = {}
    for section, _, parameter in model.named_sections():
        if parameter.requires_grad and rates[section] > 0:
            groups.setdefault(section, []).append(parameter)
    return torch.optim.SGD(
        [{"params": params, "lr": rates[name], "base_lr": rates[name]} for name, params in groups.items()],
        lr=phase.lr,
        momentum=phase.momentum,
        nesterov=phase.nesterov,
        weight_decay=phase.weight_decay,
    )


class Stepper:
    """Take optimisation steps: schedule, scaling of fp16 losses, optional clipping; ``skipped`` counts overflows."""

    def __init__(self, model: IncrementalModel, phase: OptimRecipe, iterations: int, device: torch.device) -> None:
        self.phase = phase
        self.iterations = iterations
        self.optimizer = build_optimizer(model, phase)
        self.scaler = torch.amp.GradScaler(device.type, enabled=phase.precision == "fp16")
        self.skipped = 0

    def step(self, loss: torch.Tensor, iteration: int) -> None:
        """Back-propagate ``loss`` and update the parameters at ``iteration`` (from 0)."""
        factor = lr_factor(self.phase, iteration, self.iterations)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.phase.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters(), self.phase.clip)
        if not self.scaler.is_enabled():
            self.optimizer.step()
            return
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.skipped += self.scaler.get_scale() < before

    def _parameters(self) -> Iterable[torch.Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, object]:
        """Return optimiser, scaler and the count of skipped steps."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take back what ``state_dict`` returned."""
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.scaler.load_state_dict(state["scaler"])  # type: ignore[arg-type]
        self.skipped = int(state["skipped"])  # type: ignore[call-overload]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a precision (a no-op for fp32)."""
    return torch.autocast(device.type, DTYPES.get(precision, torch.bfloat16), enabled=precision in DTYPES)
