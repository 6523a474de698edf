"""The training of a step is, bit for bit, the plain loop below: seeds, order of the calls, optimiser and schedule.

It is written out with nothing of ``harness/training``. Whatever the training learns to do for methods that need more,
methods that do not keep their weights.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.machine.seeds import derive_seed, seed_everything
from cispbench.harness.method import StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method, make_method
from cispbench.harness.runs.execute import execute
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import RunPlan, plan_run
from cispbench.harness.runs.step_store import StepStore
from cispbench.results.store import Store
from cispbench.splits.settings import parse_setting

SETTING, SEED, ITERATIONS = parse_setting("overlapped-10-10"), 3, 3


def plain_step(plan: RunPlan, source: SyntheticSource, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Train step 1 and return its weights."""
    recipe, phase, seed = plan.recipe, plan.recipe.phase(1), derive_seed(SEED, "training", 1)
    method = make_method(load_method(plan.method.name), recipe.method)
    seed_everything(derive_seed(SEED, "model", 1))
    model = build_model(recipe.model, recipe.data.crop)
    model.freeze_batch_norm = recipe.freeze_batch_norm
    model.grow(11)
    model.load_state_dict(base)
    previous = copy.deepcopy(model).eval().requires_grad_(False)
    seed_everything(derive_seed(SEED, "growth", 1))
    model.grow(10)
    model, previous = (net.to(memory_format=torch.channels_last) for net in (model, previous))
    context = StepContext(SETTING, 1, 11, 10, model, previous)
    method.initialise(context)
    loader = TrainLoader(
        source, plan.steps[1].images, SETTING.label_table(1), recipe.data, phase.batch, derive_seed(SEED, "data", 1)
    )
    seed_everything(seed)
    with torch.no_grad():
        method.before_training(context, loader.epoch(0))
    seed_everything(seed)
    model.train()
    groups: dict[str, dict[str, Any]] = {}
    for section, _, parameter in model.named_sections():
        rate = phase.lr * phase.rates.get(section, 1.0)
        groups.setdefault(section, {"params": [], "lr": rate, "base": rate})["params"].append(parameter)
    optimizer = torch.optim.SGD(
        list(groups.values()), momentum=phase.momentum, nesterov=phase.nesterov, weight_decay=phase.weight_decay
    )
    for iteration, batch in zip(range(ITERATIONS), loader.epoch(0), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * (1 - iteration / ITERATIONS) ** phase.power
        optimizer.zero_grad()
        with torch.no_grad():
            old = previous(batch.images)
        terms = method.losses(batch, model(batch.images), old, context)
        torch.stack(list(terms.values())).sum().backward()
        if phase.clip is not None:
            torch.nn.utils.clip_grad_norm_([p for group in groups.values() for p in group["params"]], phase.clip)
        optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize(("name", "model"), [("mbs", "segmenter-tiny"), ("plop", "deeplabv3-tiny"),
                                             ("mib", "deeplabv3-tiny"), ("lwf_mc", "segmenter-tiny")])  # fmt: skip
def test_a_step_has_the_weights_of_the_plain_loop_bit_for_bit(tmp_path: Path, name: str, model: str) -> None:
    source, cls = SyntheticSource("voc", train=30, val=1, size=64), load_method(name)
    changes = ["data.crop=64", "data.resize_short=null", "data.resize=none", "weights=none"]
    changes += ["evaluation.resize_short=null", "evaluation.crop=null"]
    for part in ("optim", "later"):
        changes += [f"{part}.batch=4", f"{part}.iterations={ITERATIONS}", f"{part}.warmup=0", f"{part}.precision=fp32",
                    f"{part}.schedule=poly", f"{part}.clip=2.0"]  # fmt: skip
    recipe = load_recipe(cls, SETTING, "quick", model, changes)
    method = make_method(cls, recipe.method)
    plan = plan_run(setting=SETTING, method=method, recipe=recipe, profile="quick", seed=SEED, source=source)
    options = RunOptions(Store(tmp_path / "out"), StepStore(tmp_path / "steps"), torch.device("cpu"), ProgressView(),
                         source=source, method=method)  # fmt: skip
    execute(plan, options)
    base, trained = (options.steps.load(step.key) for step in plan.steps)
    expected = plain_step(plan, source, base)
    assert expected.keys() == trained.keys()
    assert not torch.equal(expected[next(iter(base))], base[next(iter(base))])
    for key, tensor in expected.items():
        assert torch.equal(trained[key], tensor), key
