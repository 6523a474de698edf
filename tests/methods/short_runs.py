"""Short runs of the built-in methods on scenes, as ``execute`` makes them: the same ones for several tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method, make_method
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import RunPlan, plan_run
from cispbench.harness.runs.step_store import METHOD, StepStore
from cispbench.results.store import Store
from cispbench.splits.settings import parse_setting

SETTING = parse_setting("overlapped-10-5")
SCENES = SyntheticSource("voc", train=60, val=12, size=24)
SHORT = (
    "optim.iterations=4",
    "later.iterations=3",
    "optim.warmup=0",
    "later.warmup=0",
    "optim.batch=4",
    "data.crop=24",
)
# On networks of their own; all others learn on any.
NETWORKS = dict.fromkeys(("ssul", "ssul_m", "barm"), "deeplabv3-tiny-branches")
NETWORKS |= {"dkd": "deeplabv3-tiny-dkd", "dkd_m": "deeplabv3-tiny-dkd", "rcil": "deeplabv3-tiny-rcil"}


def plan(name: str, model: str | None = None, changes: Sequence[str] = (), **more: Any) -> RunPlan:
    """Plan a run of a method ("ewf plop" is EWF over PLOP), by default on the network of its quick recipe."""
    method, _, base = name.partition(" ")
    own = [f"method.base={base}"] if base else ["method.interval=2"] if method == "rw" else []
    own.append("later.batch=4")
    cls = load_method(method)
    recipe = load_recipe(cls, SETTING, "quick", model or NETWORKS.get(method), [*SHORT, *own, *changes])
    worker = make_method(cls, recipe.method)
    return plan_run(setting=SETTING, method=worker, recipe=recipe, profile="quick", seed=0, source=SCENES, **more)


def options(folder: Path) -> RunOptions:
    """Return stores below ``folder``."""
    return RunOptions(
        records=Store(folder / "out"), steps=StepStore(folder / "steps"), device=torch.device("cpu"),
        view=ProgressView(), source=SCENES,
    )  # fmt: skip


def kept(made: RunPlan, folder: Path, steps: int | None = None) -> list[dict[str, Tensor]]:
    """Return the weights and the method's state after each of the first ``steps`` steps, by default of all."""
    store = StepStore(folder / "steps")
    return [dict(store.load(step.key, *part)) for step in made.steps[:steps] for part in ((), (METHOD,))]


def memories(made: RunPlan, folder: Path) -> list[Any]:
    """Return what each step's manifest says of its exemplars."""
    store = StepStore(folder / "steps")
    manifests = [store.manifest(step.key) for step in made.steps]
    return [(found.get("memory"), found.get("exemplars")) for found in manifests]
