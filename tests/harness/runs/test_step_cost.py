"""The cost of the steps of a plan: how many images, which share of a batch, and what would make it fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cispbench.harness.cost.network import NetworkCounts
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.models.groups import Group
from cispbench.harness.recipes.fields import EvaluationRecipe
from cispbench.harness.runs.plan import RunPlan
from cispbench.harness.runs.prepare import Preparer
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_cost import PhaseCost, StepCosts, Training, evaluated_size, smaller_shares
from cispbench.harness.runs.step_store import StepStore

SETS = ("optim.batch=4", "optim.iterations=3", "later.epochs=null", "later.iterations=2")
COUNTS = NetworkCounts("deeplabv3-tiny", 48, False)
BASE, GROWN = ((Group(16),),), ((Group(16),), (Group(5),))


def plan(folder: Path, method: str = "mib", devices: int = 1, micro_batch: int | None = None) -> RunPlan:
    request = RunRequest(
        method, "overlapped-15-5", profile="quick", model="deeplabv3-tiny", overrides=SETS, devices=devices,
        micro_batch=micro_batch,
    )  # fmt: skip
    return Preparer(StepStore(folder), ProgressView()).prepare(request)


def phase(made: RunPlan, step: int) -> PhaseCost:
    (cost,) = StepCosts().training(Training(made, step))
    return cost


def test_a_step_costs_its_iterations_times_its_batch(tmp_path: Path) -> None:
    made = plan(tmp_path)
    for step, images in ((0, 3 * 4), (1, 2 * 4)):
        training = Training(made, step)
        assert training.images == images
        (recipe,) = training.phases
        image = COUNTS.training(made.learnt, step, GROWN[: step + 1], recipe, previous=step)
        assert phase(made, step).work.flops.total == pytest.approx(images * image.flops.total)


def test_a_test_costs_a_forward_pass_an_image(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert made.test_images == 256
    costs = StepCosts()
    for step, layouts in ((0, BASE), (1, GROWN)):
        assert costs.tests(made, step).flops.total == pytest.approx(256 * COUNTS.forward(layouts).total)


def test_a_method_that_needs_no_previous_network_does_not_pay_for_it(tmp_path: Path) -> None:
    with_it, without = phase(plan(tmp_path), 1), phase(plan(tmp_path, "ewc"), 1)
    difference = with_it.work.flops.total - without.work.flops.total
    assert difference == pytest.approx(2 * 4 * COUNTS.forward(BASE).total)
    assert without.bytes < with_it.bytes


def test_a_device_holds_its_share_and_of_this_a_micro_batch(tmp_path: Path) -> None:
    plans = (plan(tmp_path), plan(tmp_path, devices=2), plan(tmp_path, micro_batch=2))
    whole, shared, cut = (phase(made, 1) for made in plans)
    assert (whole.held, shared.held, cut.held) == (4, 2, 2)
    assert whole.bytes - shared.bytes == pytest.approx(2 * whole.memory.image)
    # Micro-batches whose pixels are counted beforehand need the previous network twice.
    more = cut.work.flops.total - whole.work.flops.total
    assert more == pytest.approx(2 * 4 * COUNTS.forward(BASE).total)


@pytest.mark.parametrize(
    ("short", "crop", "size"), [(512, 512, (512, 512)), (96, None, (96, 128)), (None, None, (48, 48))]
)
def test_the_size_of_test_images(short: int | None, crop: int | None, size: tuple[int, int]) -> None:
    assert evaluated_size(EvaluationRecipe(resize_short=short, crop=crop), 48) == size


def test_what_makes_it_fit(tmp_path: Path) -> None:
    made = plan(tmp_path)
    cost = phase(made, 1)
    needed = [cost.memory.bytes(images) for images in range(5)]
    assert smaller_shares(made, cost, needed[3]) == (3, 2)
    assert smaller_shares(made, cost, needed[2]) == (2, 2)
    # Batch norms behind a global pooling need two images.
    assert smaller_shares(made, cost, needed[1]) == (None, None)


def test_a_method_that_refuses_to_be_divided_is_not_told_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cispbench.methods.mib import MiB

    made = plan(tmp_path)
    cost = phase(made, 1)
    monkeypatch.setattr(MiB, "micro_batches", False)
    assert smaller_shares(made, cost, cost.memory.bytes(2)) == (None, 2)
    monkeypatch.setattr(MiB, "devices", False)
    assert smaller_shares(made, cost, cost.memory.bytes(2)) == (None, None)


def test_batch_norms_that_are_frozen_by_the_recipe_are_in_the_count(tmp_path: Path) -> None:
    made = plan(tmp_path)
    fixed = replace(made, recipe=replace(made.recipe, freeze_batch_norm=True))
    assert phase(fixed, 1).work.flops.total == pytest.approx(phase(made, 1).work.flops.total)
