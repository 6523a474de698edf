"""EWF over MiB and PLOP, and REMINDER, on one step as their releases took it (tests/golden/trajectory_*)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.method import StepContext
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.registry import make_method
from cispbench.methods.ewf import EWF, fusion_weight
from cispbench.methods.reminder import REMINDER
from tests.methods.basic_trajectories import BasicTrajectory, recipe_of, train, wave
from tests.methods.test_golden import largest

pytestmark = pytest.mark.golden
RELATIVE = 1e-4  # tests/golden/README.md


class Run:
    """A trained step; ``start``: the network after the initialisation, ``before``: it before ``after_training``."""

    def __init__(self, golden: Path, name: str, scratch: Path) -> None:
        self.trajectory = trajectory = BasicTrajectory(golden, name)
        recipe = self._recipe(name)
        self.method = make_method({"reminder": REMINDER}.get(name, EWF), recipe.method)
        if name == "reminder":
            shape = trajectory.old, int(trajectory.recorded["hidden"])
            self.method.load_state_dict({"prototypes": wave(shape, 900).float()})
        self.context = trajectory.step(1, trajectory.network())
        self.start, self.before = dict[str, Tensor](), dict[str, Tensor]()
        self._look()
        self.terms = train(self.method, self.context, trajectory, recipe, scratch).terms

    def _look(self) -> None:
        """Let two hooks of the method copy the network: the first one after its work, the last one before it."""
        initialise, after_training = self.method.initialise, self.method.after_training

        def first(context: StepContext) -> None:
            initialise(context)
            self.start.update({key: value.clone() for key, value in context.model.state_dict().items()})

        def last(context: StepContext) -> None:
            self.before.update({key: value.clone() for key, value in context.model.state_dict().items()})
            after_training(context)

        self.method.initialise, self.method.after_training = first, last  # type: ignore[method-assign]

    @staticmethod
    def _recipe(name: str) -> Recipe:
        if name == "reminder":
            return recipe_of(name, "method.delta=0.9")
        return recipe_of("ewf", f"method.base={name.removeprefix('ewf_')}")


@pytest.fixture(scope="module")
def runs(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    return functools.cache(lambda name: Run(golden, name, tmp_path_factory.mktemp(name)))


@pytest.fixture
def hold(deviations: Any) -> Callable[..., None]:
    def check(name: str, ours: Any, theirs: Tensor, bound: float = RELATIVE) -> None:
        deviation = largest(torch.as_tensor(ours), theirs)
        deviations.note(name, deviation, bound)
        assert deviation <= bound, name

    return check


@pytest.mark.parametrize("name", ["ewf_mib", "ewf_plop", "reminder"])
def test_terms_and_logits(runs: Any, hold: Any, name: str) -> None:
    run = runs(name)
    recorded = run.trajectory.recorded
    assert {f"loss.{term}" for term in run.terms} == {key for key in recorded if key.startswith("loss.")}
    for term, values in run.terms.items():
        hold(f"trajectory_{name} loss.{term}", values, recorded[f"loss.{term}"])
    hold(f"trajectory_{name} last_logits_eval", run.trajectory.logits(run.context.model), recorded["last_logits_eval"])
    state = run.context.model.state_dict()
    ends = run.trajectory.part("end.")
    ends.pop("prototypes", None)
    assert len(ends) == 8
    for key, theirs in ends.items():
        hold(f"trajectory_{name} end {key}", state[key], theirs)


@pytest.mark.parametrize("name", ["ewf_mib", "ewf_plop"])
def test_old_classifiers_are_frozen_until_the_fusion(runs: Any, hold: Any, name: str) -> None:
    run = runs(name)
    for key, theirs in run.trajectory.part("unfused.").items():
        hold(f"trajectory_{name} unfused {key}", run.before[key], theirs)
    for key in ("classifiers.0.weight", "classifiers.0.bias"):
        assert torch.equal(run.before[key], run.start[key])
    bias, end = run.start["classifiers.0.bias"], run.context.model.state_dict()["classifiers.0.bias"]
    hold(f"trajectory_{name} end other old biases", end[1:], bias[1:], 1e-6)
    weight = run.trajectory.part("end.")["classifiers.0.weight"]
    hold(f"trajectory_{name} end frozen weight", weight, run.start["classifiers.0.weight"], 1e-6)
    share = fusion_weight(run.context.old_classes, run.context.new_classes)
    assert share == pytest.approx(float(run.trajectory.recorded["fusion_weight"]), rel=1e-12)
    old = run.context.previous.state_dict()["classifiers.0.bias"][0]
    torch.testing.assert_close(end[0], (1 - share) * old + share * bias[0])


@pytest.mark.parametrize("name", ["ewf_plop", "reminder"])
def test_thresholds(runs: Any, name: str) -> None:
    run = runs(name)
    plop = run.method.base if name == "ewf_plop" else run.method
    torch.testing.assert_close(plop.thresholds, run.trajectory.recorded["thresholds"], rtol=1e-5, atol=0)


def test_prototypes_of_reminder(runs: Any, hold: Any) -> None:
    run = runs("reminder")
    hold("trajectory_reminder end.prototypes", run.method.prototypes, run.trajectory.recorded["end.prototypes"])
    assert torch.equal(run.method.state_dict()["prototypes"], run.method.prototypes)
