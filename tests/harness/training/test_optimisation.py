"""An optimisation step in half precision: the search for a scale, and where it ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cispbench.harness.method import StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.training.optimisation import Stepper
from cispbench.splits.settings import parse_setting

CPU = torch.device("cpu")
ITERATIONS = 40
FINITE = torch.tensor(True)


@pytest.fixture
def context() -> StepContext:
    torch.manual_seed(0)
    model = build_model("segmenter-tiny", 16)
    model.grow(3)
    return StepContext(parse_setting("overlapped-15-1"), 0, 0, 3, model, None)


def halves(context: StepContext) -> Stepper:
    phase = OptimRecipe(lr=1e-30, momentum=0.0, nesterov=False, iterations=ITERATIONS, precision="fp16")
    return Stepper(context, phase, ITERATIONS, CPU)


def iterate(stepper: Stepper, number: int, slope: float | Tensor) -> bool:
    stepper.start_iteration(number)
    stepper.backward(stepper.parameters()[0].sum() * slope)
    return bool(stepper.update(FINITE))


def test_overflows_of_a_scale_are_counted_and_no_fault(context: StepContext) -> None:
    stepper = halves(context)
    first = stepper.parameters()[0]
    before = first.detach().clone()
    taken = []
    for number in range(8):  # 65536, the scale to begin with, is five times too large by a factor of 2
        assert iterate(stepper, number, 1e35)
        taken.append(not torch.equal(first, before))
    assert taken == [False] * 5 + [True] * 3
    assert stepper.overflows == 5
    assert Stepper.load_state_dict(other := halves(context), stepper.state_dict()) is None and other.overflows == 5


def test_gradients_that_overflow_at_a_scale_of_one_are_no_search(context: StepContext) -> None:
    stepper = halves(context)
    told = [iterate(stepper, number, torch.tensor(float("inf"))) for number in range(20)]
    assert told == [True] * 16 + [False] * 4  # 65536 is two to the 16
    assert stepper.overflows == 16  # the others count as iterations that are not finite


@pytest.mark.parametrize("clip", [None, 1e6])
def test_a_loss_that_is_not_finite_changes_nothing_though_its_gradients_are(
    context: StepContext, clip: float | None
) -> None:
    phase = OptimRecipe(lr=0.1, iterations=ITERATIONS, precision="fp16", clip=clip)
    stepper = Stepper(context, phase, ITERATIONS, CPU)
    first = stepper.parameters()[0]
    assert iterate(stepper, 0, 1.0)
    before, state = first.detach().clone(), stepper.optimizer.state[first]["momentum_buffer"].clone()
    stepper.start_iteration(1)
    stepper.backward(first.sum())
    assert not stepper.update(~FINITE)
    assert torch.equal(first, before) and torch.equal(stepper.optimizer.state[first]["momentum_buffer"], state)
    assert stepper.overflows == 0, "the iteration is counted where its loss is read"
    assert iterate(stepper, 2, 1.0) and not torch.equal(first, before)
