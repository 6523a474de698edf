"""Optimiser, schedule, mixed precision, and what becomes of an update that is no number."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.recipes.fields import OptimRecipe


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
    """Take optimisation steps: ``begin``, any number of ``backward``, then ``update``.

    It knows the schedule, the scaling of fp16 losses and optional clipping. An update whose loss, or clipped norm, is
    no finite number is left out. ``skipped`` counts the overflows of fp16; other losses are counted by who reads them.
    """

    def __init__(self, model: IncrementalModel, phase: OptimRecipe, iterations: int, device: torch.device) -> None:
        self.phase = phase
        self.iterations = iterations
        self.optimizer = build_optimizer(model, phase)
        self.scaler = torch.amp.GradScaler(device.type, enabled=phase.precision == "fp16")
        self.skipped = 0
        self._gradients_are_old = True
        self._undo = Undo(model, self.optimizer, on_host=device.type == "cpu")

    def begin(self, iteration: int) -> None:
        """Set the learning rates of ``iteration`` (from 0)."""
        factor = lr_factor(self.phase, iteration, self.iterations)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self._gradients_are_old = True
        self._undo.remember_statistics()

    def backward(self, loss: Tensor) -> None:
        """Back-propagate a loss, or a part of it; the first one replaces the gradients of the iteration before."""
        if self._gradients_are_old:
            self.optimizer.zero_grad(set_to_none=True)
            self._gradients_are_old = False
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self, sound: Tensor) -> Tensor:
        """Update the parameters if ``sound`` holds (a bool on the device), and return whether it did.

        With fp16 it returns ``sound`` alone: overflows are part of the search for a scale, down to a scale of 1, below
        which the gradients themselves are no finite numbers.
        """
        norm = None
        if self.phase.clip is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.parameters(), self.phase.clip)
        if not self.scaler.is_enabled():
            sound = sound if norm is None else sound & norm.isfinite()
            self._undo.step(self.optimizer.step, sound)
            return sound
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)  # which looks for gradients that overflowed by itself
        self.scaler.update()
        self._undo.restore_statistics(sound)
        overflowed = self.scaler.get_scale() < before
        self.skipped += overflowed
        return sound & (before > 1.0) if overflowed else sound

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are learnt."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, object]:
        """Return optimiser, scaler and the count of skipped steps."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take back what ``state_dict`` returned."""
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.scaler.load_state_dict(state["scaler"])  # type: ignore[arg-type]
        self.skipped = int(state["skipped"])  # type: ignore[call-overload]


class Undo:
    """Take back what an iteration that is no number does: its update, and the statistics of its batch norms.

    ``on_host``: the decision is read before the update, which costs nothing where the device is the host. Elsewhere
    reading it would let the device run dry; the update is made, and taken back on the device.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, on_host: bool) -> None:
        self._optimizer, self._on_host = optimizer, on_host
        self._statistics = list(model.buffers())
        self._statistics_before = [tensor.clone() for tensor in self._statistics]
        self._before: dict[tuple[int, str], Tensor] = {}

    def remember_statistics(self) -> None:
        """Note the buffers before the network changes them."""
        _copy(self._statistics_before, self._statistics)

    def restore_statistics(self, sound: Tensor) -> None:
        """Put the buffers back unless ``sound`` holds."""
        if not self._on_host:
            _choose(sound, self._statistics, self._statistics_before)
        elif not sound:
            _copy(self._statistics, self._statistics_before)

    @torch.no_grad()
    def step(self, update: Callable[[], object], sound: Tensor) -> None:
        """Call ``update``, with an effect only if ``sound`` holds."""
        self.restore_statistics(sound)
        if self._on_host:
            if sound:
                update()
            return
        known = self._learnt()
        if self._before.keys() != known.keys():
            self._before = {key: tensor.clone() for key, tensor in known.items()}
        _copy(list(self._before.values()), list(known.values()))
        update()
        for key, tensor in self._learnt().items():
            # A momentum that this update has made begins at 0, which is where SGD lets it begin, too.
            _choose(sound, [tensor], [self._before[key] if key in self._before else torch.zeros_like(tensor)])

    def _learnt(self) -> dict[tuple[int, str], Tensor]:
        """Return all that an update changes: the parameters and their momenta."""
        found: dict[tuple[int, str], Tensor] = {}
        for parameter in (p for group in self._optimizer.param_groups for p in group["params"]):
            found[id(parameter), "value"] = parameter.data
            momentum = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                found[id(parameter), "momentum"] = momentum
        return found


@torch.no_grad()
def _copy(target: list[Tensor], source: list[Tensor]) -> None:
    if target:
        torch._foreach_copy_(target, source)


@torch.no_grad()
def _choose(sound: Tensor, live: list[Tensor], before: list[Tensor]) -> None:
    for tensor, old in zip(live, before, strict=True):
        torch.where(sound, tensor, old, out=tensor)
