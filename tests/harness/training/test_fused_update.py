"""Fused optimisers, as a GPU has them, on the CPU: an update that is not finite leaves no trace; nothing is read."""

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
from cispbench.harness.training import optimisation
from cispbench.harness.training.optimisation import Stepper
from cispbench.splits.errors import RunError
from cispbench.splits.settings import parse_setting

CPU = torch.device("cpu")
SGD = OptimRecipe(optimizer="sgd", lr=0.05, iterations=20, batch=4, weight_decay=1e-3)
ADAMW = OptimRecipe(optimizer="adamw", lr=0.01, iterations=20, batch=4, weight_decay=0.02)
RECIPES = {"sgd": SGD, "adamw": ADAMW}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimisation, "fuses", lambda device: True)


def context() -> StepContext:
    torch.manual_seed(0)
    model = build_model("deeplabv3-tiny", 16)
    model.grow(3)
    model.train()
    return StepContext(parse_setting("overlapped-15-1"), 0, 0, 3, model, None)


def stepper_of(there: StepContext, recipe: OptimRecipe) -> Stepper:
    return Stepper(there, recipe, 20, CPU)


def state(stepper: Stepper, model: nn.Module) -> dict[str, Tensor]:
    kept = {f"{i} {name}": value for i, s in enumerate(stepper.optimizer.state.values()) for name, value in s.items()}
    return {name: tensor.clone() for name, tensor in {**model.state_dict(), **kept}.items()}


def iterate(stepper: Stepper, model: nn.Module, images: Tensor, factor: float = 1.0, overflow: bool = False) -> Tensor:
    stepper.start_iteration(0)
    loss = model(images).logits.square().mean() * factor
    stepper.backward(loss)
    if overflow:
        stepper.parameters()[0].grad.view(-1)[0] = math.inf  # type: ignore[union-attr]
    return stepper.update(loss.detach().isfinite())


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", RECIPES)
def test_an_update_that_is_not_finite_leaves_weights_momenta_and_counts(fused: None, name: str, clip: float) -> None:
    recipe = OptimRecipe(**{**vars(RECIPES[name]), "clip": clip})
    there = context()
    model, batches = there.model, torch.randn(5, 4, 3, 16, 16)
    stepper = stepper_of(there, recipe)
    assert stepper.optimizer.param_groups[0]["fused"] is True
    clean = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not iterate(stepper, model, batches[0], math.nan)  # before there is any momentum
    assert all(torch.equal(tensor, clean[name]) for name, tensor in model.state_dict().items())
    assert all(not value.any() for s in stepper.optimizer.state.values() for value in s.values())
    assert iterate(stepper, model, batches[1])
    kept = state(stepper, model)
    assert not torch.equal(kept["classifiers.0.weight"], clean["classifiers.0.weight"])
    assert not iterate(stepper, model, batches[2], math.inf)
    if clip is not None:  # without it nobody looks at the gradients (nonfinite.py)
        assert not iterate(stepper, model, batches[2], overflow=True)
    after = state(stepper, model)
    assert [name for name in kept if not torch.equal(kept[name], after[name])] == []
    assert iterate(stepper, model, batches[3])

    other = context()
    plain = stepper_of(other, recipe)
    for number in (1, 3):  # as if the others had never been
        assert iterate(plain, other.model, batches[number])
    expected, found = state(plain, other.model), state(stepper, model)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_kernel_is_told_is_taken_away(fused: None, name: str) -> None:
    there = context()
    stepper = stepper_of(there, RECIPES[name])
    iterate(stepper, there.model, torch.randn(4, 3, 16, 16))
    assert not hasattr(stepper.optimizer, "found_inf") and not hasattr(stepper.optimizer, "grad_scale")


@pytest.mark.parametrize("name", RECIPES)
def test_an_optimiser_that_cannot_leave_an_update_out_is_refused(
    fused: None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = optimisation.build_optimizer

    def build(*given: Any) -> torch.optim.Optimizer:
        made: Any = right(*given)
        del made._step_supports_amp_scaling  # as in a version of torch without it
        return made

    monkeypatch.setattr(optimisation, "build_optimizer", build)
    with pytest.raises(RunError, match="cannot leave out an update on the device"):
        stepper_of(context(), RECIPES[name])


@pytest.mark.parametrize("name", RECIPES)
def test_fused_updates_are_those_of_the_cpu_but_for_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, ends = torch.randn(4, 4, 3, 16, 16), []
    for fuses in (False, True):
        monkeypatch.setattr(optimisation, "fuses", lambda device, fuses=fuses: fuses)
        there = context()
        stepper = stepper_of(there, RECIPES[name])
        for images in batches:
            iterate(stepper, there.model, images)
        ends.append(state(stepper, there.model))
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_of_one_form_is_read_in_the_other(
    name: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimisation, "fuses", lambda device: before)
    batches, there, other = torch.randn(3, 4, 3, 16, 16), context(), context()
    old = stepper_of(there, RECIPES[name])
    iterate(old, there.model, batches[0])
    saved = copy.deepcopy(old.state_dict())
    monkeypatch.setattr(optimisation, "fuses", lambda device: not before)
    other.model.load_state_dict(copy.deepcopy(there.model.state_dict()))
    new = stepper_of(other, RECIPES[name])
    new.load_state_dict(saved)
    assert bool(new.optimizer.param_groups[0]["fused"]) is not before
    for stepper, model in ((old, there.model), (new, other.model)):
        assert iterate(stepper, model, batches[1])
    for key, tensor in there.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[key], tensor, rtol=1e-4, atol=1e-5)


def fp16_trace(recipe: OptimRecipe, script: list[tuple[float, bool]]) -> tuple[list[Any], dict[str, Tensor]]:
    """Return after each iteration whether it is finite, the count of overflows and the scale; then all that is kept."""
    there = context()
    stepper, seen = stepper_of(there, recipe), []
    for factor, overflow in script:
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(len(seen)))
        finite = iterate(stepper, there.model, images, factor, overflow)
        seen.append((bool(finite), stepper.overflows, stepper.scaler.get_scale()))
    return seen, state(stepper, there.model)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", RECIPES)
def test_fp16_has_the_same_policy_on_the_device(name: str, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = OptimRecipe(**{**vars(RECIPES[name]), "precision": "fp16", "clip": clip})
    # Overflows during the search for a scale, losses that are not finite, and overflows when no scale is left: 2^16
    # halves with each overflow, NaN among them, so that the last ones find a scale of 1 or less.
    script = [(1.0, True), (1.0, False), (math.nan, False), (1.0, True), *[(1.0, True)] * 14, (1.0, False), (1.0, True)]
    monkeypatch.setattr(optimisation, "fuses", lambda device: False)
    expected, kept = fp16_trace(recipe, script)
    monkeypatch.setattr(optimisation, "fuses", lambda device: True)
    found, same = fp16_trace(recipe, script)
    assert found == expected
    assert {finite for finite, _, _ in found} == {True, False} and found[-1][1] > 3
    for key, tensor in kept.items():
        torch.testing.assert_close(same[key], tensor, rtol=1e-3, atol=1e-4)


def test_fp16_reads_nothing_on_the_device(fused: None, monkeypatch: pytest.MonkeyPatch) -> None:
    there = context()
    stepper = stepper_of(there, OptimRecipe(**{**vars(SGD), "precision": "fp16"}))
    iterate(stepper, there.model, torch.randn(4, 3, 16, 16))
    read: list[str] = []
    right = torch.Tensor.__bool__
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "item", lambda tensor: read.append("item"))
        patch.setattr(torch.Tensor, "__bool__", lambda tensor: read.append("bool") or right(tensor))
        finite = iterate(stepper, there.model, torch.randn(4, 3, 16, 16))
    assert finite and read == []
