"""AdamW: its settings reach torch, and an update that is not finite leaves no trace in its state."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cispbench.harness.method import StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.training.optimisation import Stepper
from cispbench.splits.errors import RecipeError
from cispbench.splits.settings import parse_setting

CPU = torch.device("cpu")
ADAMW = {"optimizer": "adamw", "lr": 0.01, "iterations": 9, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.02}


def context() -> StepContext:
    torch.manual_seed(0)
    model = build_model("deeplabv3-tiny", 16)
    model.grow(3)
    return StepContext(parse_setting("overlapped-15-1"), 0, 0, 3, model, None)


def state(stepper: Stepper, model: nn.Module) -> dict[str, Tensor]:
    kept = {f"{i} {name}": value for i, s in enumerate(stepper.optimizer.state.values()) for name, value in s.items()}
    return {name: tensor.clone() for name, tensor in {**model.state_dict(), **kept}.items()}


def iterate(stepper: Stepper, model: nn.Module, number: int, images: Tensor, factor: float = 1.0) -> bool:
    stepper.start_iteration(number)
    loss = model(images).logits.square().mean() * factor
    stepper.backward(loss)
    return bool(stepper.update(loss.detach().isfinite()))


def test_the_recipes_settings_are_those_of_the_optimiser() -> None:
    there = context()
    found = Stepper(there, OptimRecipe(**ADAMW, rates={"encoder": 0.1}, decay={"encoder": 0.5}), 9, CPU).optimizer
    assert isinstance(found, torch.optim.AdamW)
    encoder, decoder, classifier = found.param_groups
    assert (encoder["lr"], encoder["weight_decay"]) == (pytest.approx(0.001), pytest.approx(0.01))
    for group in (decoder, classifier):
        assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (0.01, 0.02, (0.8, 0.95), 1e-10)


def test_updates_are_those_of_the_paper_step_by_step() -> None:
    """Loshchilov and Hutter, "Decoupled weight decay regularization", algorithm 2, with a constant rate."""
    there = context()
    stepper = Stepper(there, OptimRecipe(**{**ADAMW, "schedule": "constant"}), 9, CPU)
    bias = there.model.class_groups()[0].bias
    x, m, v = bias.detach().clone().double(), torch.zeros(3).double(), torch.zeros(3).double()
    for number in range(4):
        iterate(stepper, there.model, number, torch.randn(4, 3, 16, 16))
        g = bias.grad.double()
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        unbiased = m / (1 - 0.8 ** (number + 1)), v / (1 - 0.95 ** (number + 1))
        x = x - 0.01 * (0.02 * x + unbiased[0] / (unbiased[1].sqrt() + 1e-10))
        torch.testing.assert_close(bias.detach().double(), x, rtol=1e-5, atol=1e-6)


def test_an_iteration_that_is_not_finite_leaves_no_trace() -> None:
    there = context()
    model, batches = there.model.train(), torch.randn(5, 4, 3, 16, 16)
    stepper = Stepper(there, OptimRecipe(**ADAMW), 9, CPU)
    assert not iterate(stepper, model, 0, batches[0], math.nan)  # before there is any state
    assert all(not value.any() for s in stepper.optimizer.state.values() for value in s.values())
    assert iterate(stepper, model, 1, batches[1])
    kept = state(stepper, model)
    assert not iterate(stepper, model, 2, batches[2], math.inf)
    after = state(stepper, model)
    assert [name for name in kept if not torch.equal(kept[name], after[name])] == []
    assert iterate(stepper, model, 3, batches[3])

    other = context()
    plain = Stepper(other, OptimRecipe(**ADAMW), 9, CPU)
    other.model.train()
    for number in (1, 3):  # as if the others had never been
        assert iterate(plain, other.model, number, batches[number])
    expected, found = state(plain, other.model), state(stepper, model)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_a_resumed_training_goes_on_bit_for_bit() -> None:
    batches = torch.randn(4, 4, 3, 16, 16)
    there, other = context(), context()
    straight = Stepper(there, OptimRecipe(**ADAMW), 9, CPU)
    for number in range(4):
        if number == 2:
            other.model.load_state_dict({name: tensor.clone() for name, tensor in there.model.state_dict().items()})
            resumed = Stepper(other, OptimRecipe(**ADAMW), 9, CPU)
            resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
        iterate(straight, there.model, number, batches[number])
        if number >= 2:
            iterate(resumed, other.model, number, batches[number])
    for name, tensor in there.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"optimizer": "sgd", "momentum": 0.0}, "nesterov needs a momentum"),
        ({"warmup": 3, "warmup_share": 0.1}, "either warmup or warmup_share"),
        ({"schedule": "constant", "warmup_share": 0.1}, "warmup_share belongs to the schedule poly"),
    ],
)
def test_values_that_do_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        OptimRecipe(**{**ADAMW, **changes})


def test_adamw_has_no_momentum_to_need() -> None:
    assert OptimRecipe(**ADAMW, momentum=0.0).optimizer == "adamw"
