"""LwF, LwF-MC and ILT as they are run: on both model families, from their recipes, with or without a shared base."""

from __future__ import annotations

import pytest
import torch

from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.recipes.fields import load_strict
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method
from cispbench.harness.runs.execute import execute
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import plan_run
from cispbench.harness.runs.step_store import StepStore
from cispbench.results.store import Store
from cispbench.splits.settings import parse_setting

SETTING = parse_setting("overlapped-15-5")
TERMS = {
    "lwf": {"cross_entropy", "distillation"},
    "lwf_mc": {"binary_cross_entropy", "distillation"},
    "ilt": {"cross_entropy", "distillation", "encoder_distillation"},
}


@pytest.fixture(scope="module")
def scenes() -> SyntheticSource:
    return SyntheticSource("voc", train=60, val=12, size=24)


@pytest.fixture
def plan(scenes):
    short = ("optim.iterations=4", "later.iterations=3", "optim.warmup=0", "later.warmup=0", "optim.batch=4")

    def make(name, model=None):
        method = load_method(name)
        recipe = load_recipe(method, SETTING, "quick", model, [*short, "data.crop=24"])
        worker = method(load_strict(method.Options, recipe.method, "method"))
        return plan_run(setting=SETTING, method=worker, recipe=recipe, profile="quick", seed=0, source=scenes)

    return make


@pytest.mark.parametrize("model", ["segmenter-tiny", "deeplabv3-tiny"])
@pytest.mark.parametrize("name", TERMS)
def test_a_run_on_both_families(plan, scenes, tmp_path, name, model):
    places = RunOptions(
        records=Store(tmp_path / "out"), steps=StepStore(tmp_path / "steps"), device=torch.device("cpu"),
        view=ProgressView(), source=scenes,
    )  # fmt: skip
    last = execute(plan(name, model), places).records[-1]
    assert last.finished
    assert set(last.losses.terms) - {"total"} == TERMS[name]


def test_lwf_and_ilt_share_mibs_base_and_lwf_mc_has_its_own(plan):
    keys = {name: plan(name).steps[0].key for name in ("mib", "lwf", "ilt", "lwf_mc")}
    assert keys["lwf"] == keys["ilt"] == keys["mib"] != keys["lwf_mc"]


@pytest.mark.parametrize("name", TERMS)
def test_the_paper_recipe_is_the_released_one(name):
    released = {
        "lwf": {"distillation": 100.0, "alpha": 1.0, "void_in_mean": True},
        "lwf_mc": {"form": "combined", "distillation": 10.0, "void_in_mean": True},
        "ilt": {"distillation": 100.0, "encoder_distillation": 100.0, "alpha": 1.0, "void_in_mean": True},
    }
    method, mib = load_method(name), load_method("mib")
    for setting in (SETTING, parse_setting("overlapped-15-1"), parse_setting("disjoint-100-10")):
        recipe = load_recipe(method, setting, "paper")
        assert recipe.method == released[name]
        assert load_strict(method.Options, recipe.method, "method") == method.Options()
        theirs = load_recipe(mib, setting, "paper")
        assert (recipe.model, recipe.data, recipe.optim, recipe.later) == (
            theirs.model, theirs.data, theirs.optim, theirs.later,
        )  # fmt: skip
