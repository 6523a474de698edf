"""The functions of EWC, PI and RW against three steps recorded from the release (tests/golden/*_state.npz).

Each value is computed from the *recorded* parameters and states before it: PI divides by squared moves, so that a
parameter that is off by 1e-8 would change its score visibly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.methods import importance, pi, rw
from tests.methods.test_golden import TOLERANCE, largest, recorded

pytestmark = pytest.mark.golden
Tensors = dict[str, Tensor]
METHODS = ("ewc", "pi", "rw")


class Step:
    """One recorded step: tensors by the parameter's name, those of every iteration stacked."""

    def __init__(self, recording: Mapping[str, Tensor], number: int) -> None:
        self.recording, self.number = recording, number
        self.iterations = int(recording["iterations"])
        self.start, self.after = self.of("start"), self.of("parameter")

    def of(self, kind: str) -> Tensors:
        """Return the tensors recorded as ``kind``, by parameter; none if there are none."""
        prefix = f"step{self.number}.{kind}."
        return {key.removeprefix(prefix): value for key, value in self.recording.items() if key.startswith(prefix)}

    def parameters(self, iteration: int) -> Tensors:
        """Return the parameters at which the iteration's gradient was taken; after the last one, the final ones."""
        return self.start if iteration == 0 else {name: value[iteration - 1] for name, value in self.after.items()}


def states(step: Step, kind: str, start: Callable[[str], Tensor], iteration: int) -> Tensors:
    """Return the recorded state before ``iteration``."""
    series = step.of(kind)
    return {name: value[iteration - 1] if iteration else start(name) for name, value in series.items()}


def weights(method: str, step: Step) -> Tensors:
    """Return the penalty's weights in ``step``, from what the step before saved."""
    if step.number == 0:
        return {}
    before = Step(step.recording, step.number - 1)
    kinds = {"ewc": ["fisher"], "pi": ["score"], "rw": ["fisher", "score"]}[method]
    saved = [before.of(f"saved_{kind}") for kind in kinds]
    return {name: torch.stack([importance.normalise(of[name]) for of in saved]).sum(0) for name in saved[0]}


@pytest.fixture(params=[(method, number) for method in METHODS for number in range(3)], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request: pytest.FixtureRequest, golden: Path) -> tuple[str, Step]:
    method, number = request.param
    return method, Step(recorded(golden, f"{method}_state"), number)


@pytest.fixture
def check(deviations: Any) -> Callable[[str, Tensor, Tensor], None]:
    def hold(name: str, ours: Tensor, theirs: Tensor) -> None:
        assert ours.shape == theirs.shape, name
        deviation = largest(ours, theirs) if theirs.count_nonzero() else float(ours.abs().max())
        deviations.note(name, deviation, TOLERANCE)
        assert deviation <= TOLERANCE, name

    return hold


def test_normalised(golden: Path, check: Any) -> None:
    d = recorded(golden, "importance_normalised")
    for place in range(4):
        check(f"normalised{place}", importance.normalise(d[f"importance{place}"]), d[f"normalised{place}"])


def test_fisher(case: tuple[str, Step], check: Any) -> None:
    method, step = case
    before = Step(step.recording, step.number - 1).of("saved_fisher") if step.number else {}
    gradients = step.of("data_gradient")
    for iteration in range(step.iterations):
        known = states(step, "fisher", lambda name: before.get(name, torch.ones_like(step.start[name])), iteration)
        assert bool(known) == (method != "pi")
        for name, fisher in known.items():
            ours = importance.update_fisher(fisher, gradients[name][iteration], alpha=0.9)
            check(f"{method}_state fisher", ours, step.of("fisher")[name][iteration])


def test_path(case: tuple[str, Step], check: Any) -> None:
    method, step = case
    interval = {"ewc": 0, "pi": 1, "rw": int(step.recording["interval"])}[method]
    gradients, saved = step.of("data_gradient"), step.of("saved_fisher")
    before = Step(step.recording, step.number - 1).of("saved_fisher") if step.number else {}
    for iteration in range(interval, step.iterations, interval) if interval else ():
        anchors, now = step.parameters(iteration - interval), step.parameters(iteration)
        fisher = states(step, "fisher", lambda name: before.get(name, torch.ones_like(step.start[name])), iteration)
        for name, path in states(step, "path", lambda name: torch.zeros_like(step.start[name]), iteration).items():
            moved = path, gradients[name][iteration], anchors[name], now[name]
            ours = pi.extend_path(*moved) if method == "pi" else rw.extend_path(*moved, fisher[name])
            check(f"{method}_state path", ours, step.of("path")[name][iteration])
    assert bool(saved) == (method != "pi")


def test_saved_score(case: tuple[str, Step], check: Any) -> None:
    method, step = case
    before = Step(step.recording, step.number - 1) if step.number else None
    end, previous = step.parameters(step.iterations), before.of("saved_score") if before else {}
    start = step.start | (before.parameters(before.iterations) if before else {})
    scores = step.of("saved_score")
    assert bool(scores) == (method != "ewc")
    for name, theirs in scores.items():
        path = step.of("path")[name][-1]
        if method == "pi":
            ours = pi.path_importance(path, start[name], end[name], previous=previous.get(name))
        else:
            ours = rw.path_importance(path, previous=previous.get(name))
        check(f"{method}_state saved_score", ours, theirs)


def test_penalty_and_its_gradient(case: tuple[str, Step], check: Any) -> None:
    method, step = case
    if step.number == 0:
        assert not step.recording["step0.penalty"].any()  # step 0 measures, and pulls nothing
        return
    before = Step(step.recording, step.number - 1)
    anchors, held, factor = before.parameters(before.iterations), weights(method, step), step.recording["importance"]
    ours = []
    for iteration in range(step.iterations):
        parameters = {name: value.clone().requires_grad_() for name, value in step.parameters(iteration).items()}
        penalty = factor * importance.quadratic_penalty(parameters, anchors, held)
        penalty.backward()  # type: ignore[no-untyped-call]
        ours.append(penalty.detach())
    check(f"{method}_state penalty", torch.stack(ours), step.recording[f"step{step.number}.penalty"])
    for name, theirs in step.of("penalty_gradient").items():
        grad = parameters[name].grad
        assert (grad is None) == (name not in held), "a new parameter must not be pulled, an old one must"
        check(f"{method}_state penalty_gradient", torch.zeros_like(theirs) if grad is None else grad, theirs)


def test_a_penalty_without_old_parameters_is_0() -> None:
    assert importance.quadratic_penalty({"a": torch.ones(2)}, {}, {}) == 0
