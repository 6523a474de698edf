"""What the methods make of a setting's steps, before any loss: joint training has one, all others have them all."""

from __future__ import annotations

import functools

import pytest

from cispbench.harness.data.source import Source
from cispbench.harness.data.synthetic import synthetic_source
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method, make_method, method_names
from cispbench.harness.runs.plan import RunPlan, plan_run
from cispbench.splits.settings import parse_setting

SETTING = parse_setting("overlapped-15-1")


@functools.cache
def source() -> Source:
    return synthetic_source("voc")


@functools.cache
def planned(name: str) -> RunPlan:
    cls = load_method(name)
    recipe = load_recipe(cls, SETTING, "quick")
    return plan_run(
        setting=SETTING, method=make_method(cls, recipe.method), recipe=recipe, profile="quick", seed=0, source=source()
    )


def test_joint_learns_every_class_in_one_step_with_full_labels() -> None:
    plan = planned("joint")
    assert len(plan.steps) == 1
    assert plan.learnt.new_classes(0) == 21
    assert sorted(plan.learnt.label_table(0)[:21]) == list(range(21))
    assert set(plan.steps[0].images) == set(source().ids("train"))


@pytest.mark.parametrize("name", sorted(set(method_names()) - {"joint"}))
def test_the_others_learn_step_by_step_and_share_the_base_where_they_say_so(name: str) -> None:
    plan, base = planned(name), planned("finetune").steps[0].key
    assert [step.step for step in plan.steps] == list(range(6))
    same_recipe = (
        load_recipe(load_method(name), SETTING, "quick").optim
        == load_recipe(load_method("finetune"), SETTING, "quick").optim
    )
    assert (plan.steps[0].key == base) == (load_method(name).shared_base and same_recipe)
