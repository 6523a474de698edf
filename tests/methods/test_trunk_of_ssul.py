"""SSUL's recipe as it runs: the trunk that its later steps freeze is computed once for both networks, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method, make_method
from cispbench.harness.runs.execute import execute
from cispbench.harness.runs.plan import RunPlan, plan_run
from cispbench.harness.training import iteration
from tests.methods.short_runs import SCENES, SETTING, kept, options, plan

# What of the mini recipe needs real images, or minutes.
SMALL = (
    "weights=none", "data.resize_short=null", "data.crop=33", "optim.iterations=1", "later.epochs=null",
    "later.iterations=2", "optim.batch=2", "later.batch=2", "evaluation.resize_short=null",
)  # fmt: skip


def mini(name: str, changes: Sequence[str]) -> RunPlan:
    cls = load_method(name)
    recipe = load_recipe(cls, SETTING, "mini", None, changes)
    assert recipe.model == "deeplabv3-mobilenetv2-branches"
    method = make_method(cls, recipe.method)
    return plan_run(setting=SETTING, method=method, recipe=recipe, profile="mini", seed=0, source=SCENES)


@pytest.mark.parametrize("profile", ["quick", "mini"])
@pytest.mark.parametrize("name", ["ssul", "ssul_m"])
def test_later_steps_share_their_trunk_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, profile: str
) -> None:
    made = plan(name) if profile == "quick" else mini(name, SMALL)
    shared: list[bool] = []
    asked = iteration.shares_trunk
    monkeypatch.setattr(iteration, "shares_trunk", lambda *given: shared.append(asked(*given)) or shared[-1])
    once = execute(made, options(tmp_path / "once")).records
    assert shared == [False, True, True]  # the base has no previous network
    monkeypatch.setattr(iteration, "shares_trunk", lambda *_: False)
    twice = execute(made, options(tmp_path / "twice")).records
    for ours, theirs in zip(once, twice, strict=True):
        assert ours.losses == theirs.losses and ours.confusion == theirs.confusion
    pairs = list(zip(kept(made, tmp_path / "once"), kept(made, tmp_path / "twice"), strict=True))
    assert len(pairs) == 6
    for weights, others in pairs:
        assert weights.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in weights.items())


def test_its_network_has_the_dropout_that_comes_after_the_trunk() -> None:
    from cispbench.harness.models.catalogue import build_model

    rates = [
        part.p for part in build_model("deeplabv3-tiny-branches", 24).modules() if isinstance(part, torch.nn.Dropout)
    ]
    assert rates and all(rate > 0 for rate in rates)
