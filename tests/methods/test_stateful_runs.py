"""EWC, PI, RW, EWF and REMINDER as they are run: on both families, and bit for bit the same after an interruption."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method, make_method
from cispbench.harness.runs.execute import execute
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import RunPlan, plan_run
from cispbench.harness.runs.step_store import METHOD, StepStore
from cispbench.harness.training.job import StoppedError
from cispbench.results.store import Store
from cispbench.splits.settings import parse_setting

SETTING = parse_setting("overlapped-10-5")
SHORT = (
    "optim.iterations=4",
    "later.iterations=3",
    "optim.warmup=0",
    "later.warmup=0",
    "optim.batch=4",
    "data.crop=24",
)
SCENES = SyntheticSource("voc", train=60, val=12, size=24)
TERMS = {
    "ewc": {"cross_entropy"},
    "pi": {"cross_entropy"},
    "rw": {"cross_entropy"},
    "ewf": {"cross_entropy", "distillation"},
    "ewf plop": {"cross_entropy", "pod"},
    "reminder": {"cross_entropy", "pod", "class_similarity"},
}
STATE = {"ewc": "fisher.", "pi": "score.", "rw": "score.", "ewf plop": "base.thresholds", "reminder": "prototypes"}


def plan(name: str, model: str) -> RunPlan:
    method, _, base = name.partition(" ")
    changes = [*SHORT, *([f"method.base={base}"] if base else []), *(["method.interval=2"] if name == "rw" else [])]
    cls = load_method(method)
    recipe = load_recipe(cls, SETTING, "quick", model, changes)
    worker = make_method(cls, recipe.method)
    return plan_run(setting=SETTING, method=worker, recipe=recipe, profile="quick", seed=0, source=SCENES)


def options(folder: Path) -> RunOptions:
    return RunOptions(
        records=Store(folder / "out"), steps=StepStore(folder / "steps"), device=torch.device("cpu"),
        view=ProgressView(), source=SCENES,
    )  # fmt: skip


def kept(made: RunPlan, folder: Path) -> list[dict[str, Tensor]]:
    """Return the weights and the method's state after each step."""
    store = StepStore(folder / "steps")
    return [dict(store.load(step.key, *part)) for step in made.steps for part in ((), (METHOD,))]


@pytest.mark.parametrize("model", ["segmenter-tiny", "deeplabv3-tiny"])
@pytest.mark.parametrize("name", TERMS)
def test_a_run_and_one_that_is_interrupted(tmp_path: Path, name: str, model: str) -> None:
    made = plan(name, model)
    whole = execute(made, options(tmp_path / "whole")).records
    assert set(whole[-1].losses.terms) - {"total"} == TERMS[name]
    assert whole[-1].finished
    calls, interruptions = itertools.count(1), 0
    while interruptions < 30:
        places = replace(options(tmp_path / "parts"), stop=lambda: next(calls) % 2 == 0)
        try:
            parts = execute(plan(name, model), places).records
            break
        except StoppedError:
            interruptions += 1
    assert interruptions == len(made.steps)  # one in each
    assert [record.confusion for record in parts] == [record.confusion for record in whole]
    for ours, theirs in zip(kept(made, tmp_path / "parts"), kept(made, tmp_path / "whole"), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    state = kept(made, tmp_path / "whole")[-1]
    assert any(key.startswith(STATE[name]) for key in state) if name in STATE else not state
