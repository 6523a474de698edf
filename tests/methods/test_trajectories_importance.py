"""EWC, PI and RW on two steps as their release took them (tests/golden/trajectory_*): a measured step 0, and step 1."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.method import StepContext
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.registry import load_method, make_method
from cispbench.methods.importance import ImportanceMethod
from tests.methods.basic_trajectories import NAMES, BasicTrajectory, recipe_of, train, wave
from tests.methods.test_golden import largest

pytestmark = pytest.mark.golden
# Relative bounds of tests/golden/README.md: cross-entropy, penalty, logits at the end.
BOUNDS = {"ewc": (1e-3, 5e-3, 1e-3), "pi": (1e-3, 5e-2, 1e-3), "rw": (5e-3, 5e-3, 5e-3)}
SAVED = 1e-3  # of the importances that step 0 leaves


class Steps:
    """Both steps, trained."""

    def __init__(self, golden: Path, name: str, scratch: Path) -> None:
        self.trajectory = BasicTrajectory(golden, name)
        recipe = recipe_of(name, *(["method.interval=2"] if name == "rw" else []))
        first, second = self._method(name, recipe), self._method(name, recipe)
        model = self.trajectory.network()
        log = train(first, self.trajectory.step(0, model), self.trajectory, recipe, scratch)
        self.base_terms = {**log.terms, **log.notes}
        self.saved = first.state_dict()
        self.context = self.trajectory.step(1, model)
        start_new_classifier(self.context)
        second.load_state_dict(dict(reversed(self.saved.items())))  # a stored state comes back in another order
        log = train(second, self.context, self.trajectory, recipe, scratch)
        self.terms = {**log.terms, **log.notes}
        self.state = second.state_dict()

    @staticmethod
    def _method(name: str, recipe: Recipe) -> ImportanceMethod:
        method = make_method(load_method(name), recipe.method)
        assert isinstance(method, ImportanceMethod)
        return method


def start_new_classifier(context: StepContext) -> None:
    group = context.model.class_groups()[-1]
    with torch.no_grad():
        group.weight.copy_(wave(tuple(group.weight.shape), 500) * 4 * math.sqrt(2 / group.weight.shape[1]))
        group.bias.copy_(0.01 * wave(tuple(group.bias.shape), 501))


@pytest.fixture(scope="module")
def steps(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Steps]:
    return functools.cache(lambda name: Steps(golden, name, tmp_path_factory.mktemp(name)))


@pytest.fixture
def hold(deviations: Any) -> Callable[[str, Any, Tensor, float], None]:
    def check(name: str, ours: Any, theirs: Tensor, bound: float) -> None:
        deviation = largest(torch.as_tensor(ours), theirs)
        deviations.note(name, deviation, bound)
        assert deviation <= bound, name

    return check


@pytest.mark.parametrize("name", BOUNDS)
def test_terms_and_logits(steps: Any, hold: Any, name: str) -> None:
    run = steps(name)
    recorded, (cross_entropy, penalty, logits) = run.trajectory.recorded, BOUNDS[name]
    base = recorded["step0.loss.cross_entropy"]
    hold(f"trajectory_{name} step0.loss.cross_entropy", run.base_terms["cross_entropy"], base, cross_entropy)
    assert set(run.base_terms) == {"cross_entropy"}
    assert set(run.terms) == {"cross_entropy", "penalty"}
    for term, bound in (("cross_entropy", cross_entropy), ("penalty", penalty)):
        hold(f"trajectory_{name} loss.{term}", run.terms[term], recorded[f"loss.{term}"], bound)
    ours = run.trajectory.logits(run.context.model)
    hold(f"trajectory_{name} last_logits_eval", ours, recorded["last_logits_eval"], logits)
    state = run.context.model.state_dict()
    ends = run.trajectory.part("end.")
    assert len(ends) == 8
    for key, theirs in ends.items():
        hold(f"trajectory_{name} end {key}", state[key], theirs, logits)


@pytest.mark.parametrize("name", BOUNDS)
def test_what_step_0_leaves(steps: Any, hold: Any, golden: Path, name: str) -> None:
    run = steps(name)
    kinds = {"ewc": {"fisher"}, "pi": {"score"}, "rw": {"fisher", "score"}}[name]
    assert {key.partition(".")[0] for key in run.saved} - {"iteration"} == kinds
    for kind in kinds:
        tensors = run.trajectory.part(f"step0.saved_{kind}.")
        assert len(tensors) == 3
        for key, theirs in tensors.items():
            hold(f"trajectory_{name} step0.saved_{kind}.{key}", run.saved[f"{kind}.{key}"], theirs, SAVED)
        if name == "pi":  # a parameter that hardly moved divides by a square near 0: its sum follows rounding errors
            continue
        names = [key for key in sorted(json.loads((golden / NAMES).read_text())) if key.endswith((".weight", ".bias"))]
        sums = [float(run.saved[f"{kind}.{run.trajectory.ours(key)}"].double().sum()) for key in names]
        theirs = run.trajectory.recorded[f"step0.saved_{kind}_sums"]
        hold(f"trajectory_{name} step0.saved_{kind}_sums", torch.tensor(sums), theirs, SAVED)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_step_leaves_importances_of_all_its_parameters_alone(steps: Any, name: str) -> None:
    run = steps(name)
    parameters = {key for key, _ in run.context.model.named_parameters()}
    for kind in {key.partition(".")[0] for key in run.state} - {"iteration"}:
        assert {key.removeprefix(f"{kind}.") for key in run.state if key.startswith(f"{kind}.")} == parameters
