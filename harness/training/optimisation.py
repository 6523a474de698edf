"""The optimiser, the schedule of the learning rate, clipping, and the scaling of fp16 losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.training.guarded_update import GuardedUpdate


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
    """Carry out an iteration's optimisation: ``start_iteration``, ``backward`` for each micro-batch, ``update``.

    ``overflows`` counts the updates that fp16's GradScaler left out while it searched; see ``nonfinite.py``.
    """

    def __init__(self, model: IncrementalModel, phase: OptimRecipe, iterations: int, device: torch.device) -> None:
        self.phase = phase
        self.iterations = iterations
        self.optimizer = build_optimizer(model, phase)
        self.scaler = torch.amp.GradScaler(device.type, enabled=phase.precision == "fp16")
        self.overflows = 0
        self._gradients_are_old = True
        self._guard = GuardedUpdate(model, self.optimizer, on_host=device.type == "cpu")

    def start_iteration(self, iteration: int) -> None:
        """Set the learning rates of ``iteration`` (from 0)."""
        factor = lr_factor(self.phase, iteration, self.iterations)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self._gradients_are_old = True
        self._guard.remember_buffers()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss; those of the iteration before are dropped first."""
        if self._gradients_are_old:
            # Not earlier: a method's `losses` may have left gradients of its own, which must not count.
            self.optimizer.zero_grad(set_to_none=True)
            self._gradients_are_old = False
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self, loss_finite: Tensor, look: Callable[[], None] | None = None) -> Tensor:
        """Clip, and update the parameters if the iteration is finite; return whether it is (see ``nonfinite.py``).

        ``loss_finite`` and the result are bools on the device. ``look`` is called before clipping, with the gradients
        unscaled, if they and the loss are finite.
        """
        norm = None
        if self.phase.clip is not None or look is not None:
            self.scaler.unscale_(self.optimizer)
        if look is not None:
            gradients_finite = self._gradients_finite(loss_finite)
            # Reading this makes a GPU wait: only a method that has asked for the gradients pays for it.
            if loss_finite & gradients_finite:
                look()
            if not self.scaler.is_enabled():  # the scaler finds such gradients itself
                loss_finite = loss_finite & gradients_finite
        if self.phase.clip is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters(), self.phase.clip)
        if self.scaler.is_enabled():
            return self._update_fp16(loss_finite, unscaled=self.phase.clip is not None or look is not None)
        finite = loss_finite if norm is None else loss_finite & norm.isfinite()
        self._guard.update_if(finite, self.optimizer.step)
        return finite

    def _gradients_finite(self, loss_finite: Tensor) -> Tensor:
        found = [parameter.grad.isfinite().all() for parameter in self.parameters() if parameter.grad is not None]
        return torch.stack(found).all() if found else torch.ones_like(loss_finite)

    def _update_fp16(self, loss_finite: Tensor, *, unscaled: bool) -> Tensor:
        scale = self.scaler.get_scale()
        if not unscaled:
            self.scaler.unscale_(self.optimizer)  # in which the scaler looks at the gradients
        if loss_finite:
            self.scaler.step(self.optimizer)  # without effect if a gradient is not finite
        self.scaler.update()
        self._guard.restore_buffers_unless(loss_finite)
        if self.scaler.get_scale() >= scale:
            return loss_finite
        # With a scale above 1 the overflow was part of the search for a scale, and no fault.
        finite = loss_finite & (scale > 1.0)
        self.overflows += int(finite)
        return finite

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are learnt."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, object]:
        """Return optimiser, scaler and the count of overflows."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "overflows": self.overflows,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take back what ``state_dict`` returned."""
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.scaler.load_state_dict(state["scaler"])  # type: ignore[arg-type]
        self.overflows = int(state["overflows"])  # type: ignore[call-overload]
