"""What SSUL, DKD and BARM learn from step 1 on, and how fast, under their recipes as they run."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import pytest
import torch

from cispbench.harness.method import StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.training.optimisation import build_optimizer
from cispbench.methods.barm import BARM
from cispbench.methods.dkd import DKD, DKDM
from cispbench.methods.ssul import SSUL, SSULM
from cispbench.splits.settings import parse_setting

SETTING = parse_setting("overlapped-15-1")
STEP = 2
PROFILES = ("quick", "mini", "paper")


def learnt(method_type: Any, profile: str, network: str) -> dict[str, set[tuple[float, float]]]:
    """Return the pairs (factor on the rate, factor on the decay) of each part's weights at step 2.

    A part without such a pair is not learnt; its norms are ``<part> norms``.
    """
    recipe = load_recipe(method_type, SETTING, profile)
    phase, method = recipe.phase(STEP), method_type()
    model = build_model(network, recipe.data.crop)
    for step in range(STEP):
        model.grow(method.layout(SETTING, step))
    previous = copy.deepcopy(model)
    model.grow(method.layout(SETTING, STEP))
    old, new = SETTING.old_classes(STEP), SETTING.new_classes(STEP)
    context = StepContext(SETTING, STEP, old, new, model.train(), previous)
    optimizer = build_optimizer(context, phase, torch.device("cpu"))
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for parameter in module.parameters()
    }
    pairs = {
        id(parameter): (round(group["base_lr"] / phase.lr, 9), round(group["weight_decay"] / phase.weight_decay, 9))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    found: dict[str, set[tuple[float, float]]] = defaultdict(set)
    for name, parameter in model.named_parameters():
        section, place, *_ = name.split(".")
        part = f"{section}.{place}" if section in ("branches", "classifiers") else section
        part += " norms" * (id(parameter) in norms)
        found[part] |= {pairs[id(parameter)]} if id(parameter) in pairs else set()
    return found


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("method", [SSUL, SSULM])
def test_ssul_learns_the_branches_of_unknown_background_and_new_classes(method: Any, profile: str) -> None:
    found = learnt(method, profile, "deeplabv3-tiny-branches")
    moving = {part: pairs for part, pairs in found.items() if pairs}
    # The branches: unknown, background, classes of step 0, of step 1, of step 2.
    assert moving == {"branches.0": {(1, 1)}, "branches.1": {(1e-4, 1)}, "branches.4": {(1, 1)}}
    assert {"encoder", "head", "branches.2", "branches.3", "branches.4 norms"} <= found.keys()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("method", [DKD, DKDM])
def test_dkd_decays_the_new_classifier_alone(method: Any, profile: str) -> None:
    found = learnt(method, profile, "deeplabv3-tiny-dkd")
    encoder = found["encoder"]
    assert len(encoder) == 1 and next(iter(encoder))[1] == 0
    # The classifiers: auxiliary, step 0, step 1, step 2.
    old = {part: {(1, 0)} for part in ("head", "classifiers.0", "classifiers.1", "classifiers.2")}
    assert {part: pairs for part, pairs in found.items() if pairs} == old | {
        "encoder": encoder, "classifiers.3": {(1, 1)},
    }  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES)
def test_barm_learns_what_is_old_at_a_tenth(profile: str) -> None:
    found = learnt(BARM, profile, "deeplabv3-tiny-branches")
    assert {part: pairs for part, pairs in found.items() if pairs} == {
        "encoder": {(0.1, 1)}, "head": {(1, 1)},
        "branches.0": {(0.1, 1)}, "branches.1": {(0.1, 1)}, "branches.2": {(1, 1)},
    }  # fmt: skip
