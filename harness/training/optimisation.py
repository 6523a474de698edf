"""The optimiser, the schedule of the learning rate, clipping, and the scaling of fp16 losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cispbench.harness.method import StepContext
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.recipes.selectors import check_selectors
from cispbench.harness.training.guarded_update import GuardedUpdate
from cispbench.harness.training.selected_parts import factor, frozen_modules, selectors_of_parameters
from cispbench.harness.training.uncompiled import uncompiled
from cispbench.splits.errors import RecipeError


def rates(
    policy: Literal["poly", "warm_poly", "constant"],
    base: Sequence[float],
    iteration: int,
    iterations: int,
    floor: float = 0.0,
    warmup_share: float = 0.1,
    *,
    warmup_start: float = 1e-3,
    warmup: int = 0,
    power: float = 0.9,
) -> list[float]:
    """Return the learning rates at ``iteration`` (from 0) of ``iterations``, for the rates ``base`` of the groups.

    "poly" multiplies by (1 - iteration / iterations)^power, "constant" by 1. "warm_poly" is "poly", times a factor that
    rises linearly from ``warmup_start`` to 1 over the first int(warmup_share * iterations) iterations. During the first
    ``warmup`` iterations all are multiplied by (iteration + 1) / warmup. No rate is below ``floor``.

    Source: clovaai/SSUL at e08ee9c, utils/scheduler.py, PolyLR and WarmUpPolyLR; the floor there is 1e-6.
    """
    factor = 1.0 if policy == "constant" else (1.0 - iteration / iterations) ** power
    rising = int(warmup_share * iterations) if policy == "warm_poly" else 0
    if iteration < rising:
        share = iteration / rising
        factor *= warmup_start * (1.0 - share) + share
    if iteration < warmup:
        factor *= (iteration + 1) / warmup
    return [max(rate * factor, floor) for rate in base]


def build_optimizer(context: StepContext, recipe: OptimRecipe, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimiser of what is learnt; each group's ``base_lr`` is what the schedule starts from.

    What is not learnt is frozen: parameters of rate 0, and the norms and dropouts that the recipe freezes. Raises
    RecipeError for a selector that names nothing of the network.
    """
    model, selectors = context.model, selectors_of_parameters(context)
    check_selectors(recipe, context.step, (group.role for group in model.class_groups()), model.sections())
    modules = dict(frozen_modules(context, recipe))
    of_norms = {id(parameter) for module in modules.values() for parameter in module.parameters()}
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    frozen: list[nn.Parameter] = []
    model.freeze([], [])  # what another phase has frozen is learnt again
    for section, _, parameter in model.named_sections():
        words = selectors[id(parameter)]
        rate, decay = factor(recipe.rates, words), factor(recipe.decay, words)
        if rate == 0 or id(parameter) in of_norms:
            frozen.append(parameter)
        elif parameter.requires_grad:
            groups.setdefault((section, rate, decay), []).append(parameter)
    model.freeze(frozen, modules)
    # An optimiser without any group is an error of torch, but a step without iterations may learn nothing.
    described = [
        {"params": group, "lr": lr, "base_lr": lr, "weight_decay": recipe.weight_decay * decay}
        for (_, rate, decay), group in groups.items()
        for lr in [recipe.lr * rate]
    ] or [{"params": [], "base_lr": recipe.lr}]
    # A fused optimiser can leave an update out on the device (GuardedUpdate); AdamW then counts its updates there, too.
    if recipe.optimizer == "sgd":
        sgd: torch.optim.Optimizer = uncompiled(torch.optim.SGD)(
            described, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay, fused=fuses(device) or None,
        )  # fmt: skip
        _start_momenta(sgd)
        return sgd
    first, second = recipe.betas
    adamw: torch.optim.Optimizer = uncompiled(torch.optim.AdamW)(
        described, lr=recipe.lr, betas=(first, second), eps=recipe.eps, weight_decay=recipe.weight_decay,
        fused=fuses(device) or None,
    )  # fmt: skip
    return adamw


def fuses(device: torch.device) -> bool:
    """Return whether a device updates all parameters in one kernel; the CPU keeps the form that its results have."""
    return device.type == "cuda"


def _start_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Set the momenta that a fused SGD lacks to 0, from which its first update gives the gradient, as it should.

    It would make them itself, with no values yet, and leave them so if that update is left out.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["fused"] and group["momentum"] != 0:
            for parameter in group["params"]:
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class Stepper:
    """Carry out an iteration's optimisation: ``start_iteration``, ``backward`` for each micro-batch, ``update``."""

    def __init__(self, context: StepContext, recipe: OptimRecipe, iterations: int, device: torch.device) -> None:
        self.recipe = recipe
        self.iterations = iterations
        self.optimizer = build_optimizer(context, recipe, device)
        if iterations > 0 and not self.parameters():
            raise RecipeError(
                f"step {context.step} learns nothing: every parameter has the rate 0 or is frozen.",
                hint="Give a part of the network a rate above 0 (optim.rates), or set iterations to 0.",
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self._overflows: int | Tensor = 0  # on the device, where the updates are left out there
        self._gradients_are_old = True
        self._fused = fuses(device)
        self._guard = GuardedUpdate(context.model, self.optimizer, on_host=not self._fused)

    def start_iteration(self, iteration: int) -> None:
        """Set the learning rates of ``iteration`` (from 0)."""
        recipe, groups = self.recipe, self.optimizer.param_groups
        policy = "warm_poly" if recipe.schedule == "poly" and recipe.warmup_share else recipe.schedule
        found = rates(
            policy, [group["base_lr"] for group in groups], iteration, self.iterations, recipe.floor,
            recipe.warmup_share, warmup_start=recipe.warmup_start, warmup=recipe.warmup, power=recipe.power,
        )  # fmt: skip
        for group, rate in zip(groups, found, strict=True):
            group["lr"] = rate
        self._gradients_are_old = True
        self._guard.remember_buffers()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss; those of the iteration before are dropped first."""
        if self._gradients_are_old:
            # Not earlier: a method's `losses` may have left gradients of its own, which must not count.
            self.optimizer.zero_grad(set_to_none=True)
            self._gradients_are_old = False
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self, loss_finite: Tensor, after_gradients: Callable[[], None] | None = None) -> Tensor:
        """Clip, and update the parameters if the iteration is finite; return whether it is (see ``nonfinite.py``).

        ``loss_finite`` and the result are bools on the device. ``after_gradients`` is called before clipping, with the
        gradients unscaled, if they and the loss are finite.
        """
        norm = None
        if self.recipe.clip is not None or after_gradients is not None:
            self.scaler.unscale_(self.optimizer)
        if after_gradients is not None:
            gradients_finite = self._gradients_finite(loss_finite)
            # Reading this makes a GPU wait: only a method that has asked for the gradients pays for it.
            if loss_finite & gradients_finite:
                after_gradients()
            if not self.scaler.is_enabled():  # the scaler finds such gradients itself
                loss_finite = loss_finite & gradients_finite
        if self.recipe.clip is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters(), self.recipe.clip)
        if self.scaler.is_enabled():
            return self._update_fp16(loss_finite, unscaled=self.recipe.clip is not None or after_gradients is not None)
        finite = loss_finite if norm is None else loss_finite & norm.isfinite()
        self._guard.update_if(finite, self.optimizer.step)
        return finite

    def _gradients_finite(self, loss_finite: Tensor) -> Tensor:
        found = [parameter.grad.isfinite().all() for parameter in self.parameters() if parameter.grad is not None]
        return torch.stack(found).all() if found else torch.ones_like(loss_finite)

    def _update_fp16(self, loss_finite: Tensor, *, unscaled: bool) -> Tensor:
        if not unscaled:
            self.scaler.unscale_(self.optimizer)  # in which the scaler looks at the gradients
        return self._update_fp16_on_device(loss_finite) if self._fused else self._update_fp16_on_host(loss_finite)

    def _update_fp16_on_host(self, loss_finite: Tensor) -> Tensor:
        scale = self.scaler.get_scale()
        if loss_finite:
            self.scaler.step(self.optimizer)  # without effect if a gradient is not finite
        self.scaler.update()
        self._guard.restore_buffers_unless(loss_finite)
        if self.scaler.get_scale() >= scale:
            return loss_finite
        # With a scale above 1 the overflow was part of the search for a scale, and no fault.
        finite = loss_finite & (scale > 1.0)
        self._overflows += int(finite)
        return finite

    def _update_fp16_on_device(self, loss_finite: Tensor) -> Tensor:
        """Do the same without reading anything; ``scaler.step`` would not know of a loss that is not finite."""
        found = torch.stack(list(self.scaler._found_inf_per_device(self.optimizer).values()))
        overflowed, scale = (found != 0).any(), self.scaler._get_scale_async()
        assert scale is not None  # the loss was scaled by it
        searching = scale > 1.0  # before the update of the scaler, which changes the scale in place
        self._guard.update_parameters_if(loss_finite & ~overflowed, self.optimizer.step)
        self.scaler.update()
        self._guard.restore_buffers_unless(loss_finite)
        finite = loss_finite & (searching | ~overflowed)
        self._overflows = self._overflows + (finite & overflowed)
        return finite

    @property
    def overflows(self) -> int:
        """How many updates fp16's GradScaler left out while it searched (``nonfinite.py``).

        Asking waits for the device.
        """
        return int(self._overflows)

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
        self.optimizer.load_state_dict(self._as_here(state["optimizer"]))
        _start_momenta(self.optimizer)
        self.scaler.load_state_dict(state["scaler"])  # type: ignore[arg-type]
        self._overflows = int(state["overflows"])  # type: ignore[call-overload]

    def _as_here(self, saved: Any) -> dict[str, Any]:
        """Return the state of an optimiser as this device keeps it: it may come from another one, or from before."""
        pairs = zip(saved["param_groups"], self.optimizer.param_groups, strict=True)
        how = ("fused", "foreach", "capturable")  # AdamW counts on the device or on the host, by these
        groups = [{**group, **{name: own[name] for name in how if name in own}} for group, own in pairs]
        return {**saved, "param_groups": groups}
