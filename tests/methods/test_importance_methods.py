"""EWC, PI and RW as methods: three recorded steps through their hooks, and what each of their switches changes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.method import Batch, Output, StepContext
from cispbench.harness.registry import load_method
from cispbench.methods.importance import ImportanceMethod, normalise, quadratic_penalty
from cispbench.splits.errors import MethodError
from cispbench.splits.settings import parse_setting
from tests.methods.test_golden import largest, recorded
from tests.methods.test_golden_importance import Step

METHODS = ("ewc", "pi", "rw")
SETTING = parse_setting("overlapped-15-1")
SCALES, GRADIENT = (1.0, 2.0, 5.0), torch.tensor([1.0, 2.0, -3.0])  # gradients of three iterations are scale * GRADIENT
EVERY_MOVE: dict[str, dict[str, int]] = {"ewc": {}, "pi": {}, "rw": {"interval": 1}}


class Parameters:
    """Stands in for a network: parameters by name."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}

    def named_parameters(self) -> Any:
        return self.values.items()


def make(name: str, **options: Any) -> ImportanceMethod:
    cls = load_method(name)
    method = cls(cls.Options(**options))
    assert isinstance(method, ImportanceMethod)
    return method


def context(step: int, model: Parameters, previous: Parameters | None, log: dict[str, list[Tensor]]) -> StepContext:
    services = SimpleNamespace(log=lambda name, value: log.setdefault(name, []).append(value))
    return StepContext(SETTING, step, 1, 1, model, previous, services=services)  # type: ignore[arg-type]


def again(method: ImportanceMethod) -> ImportanceMethod:
    """Return another instance with the same options and state, as after a kill; the state comes in another order."""
    other = type(method)(method.options)
    other.load_state_dict({name: value.clone() for name, value in reversed(method.state_dict().items())})
    return other


@pytest.mark.golden
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("resumed", [False, True])
def test_three_steps(golden: Path, name: str, resumed: bool) -> None:
    """Every state and penalty of the recording, also if each iteration is that of a new instance."""
    recording = recorded(golden, f"{name}_state")
    options = {"interval": int(recording["interval"])} if name == "rw" else {}
    method, previous = make(name, **options), None
    for number in range(3):
        step, log = Step(recording, number), dict[str, list[Tensor]]()
        model = Parameters(step.start)
        now = context(number, model, previous, log)
        method.initialise(now)
        for iteration in range(step.iterations):
            method = again(method) if resumed else method
            for key, value in step.parameters(iteration).items():
                model.values[key].data.copy_(value)
            gradients = {key: value[iteration].clone() for key, value in step.of("data_gradient").items()}
            method.after_gradients(gradients, now)
            for kind in ("fisher", "path"):
                for key, theirs in step.of(kind).items():
                    assert close(method.kept[kind][key], theirs[iteration]), (kind, key)
        for key, value in step.parameters(step.iterations).items():
            model.values[key].data.copy_(value)
        for key, theirs in step.of("penalty_gradient").items():
            assert close(gradients[key] - step.of("data_gradient")[key][-1], theirs, 1e-4), key
        if number:
            assert close(torch.stack(log["penalty"]), recording[f"step{number}.penalty"])
        assert bool(log) == bool(number)
        method.after_training(now)
        assert set(method.kept) == {kind for kind in ("fisher", "score") if step.of(f"saved_{kind}")}
        for kind in method.kept:
            for key, theirs in step.of(f"saved_{kind}").items():
                assert close(method.kept[kind][key], theirs), (kind, key)
        method, previous = again(method), model


def close(ours: Tensor, theirs: Tensor, bound: float = 1e-5) -> bool:
    """Whether the deviation is within ``bound`` of the largest value; exactly 0 where all recorded values are."""
    return largest(ours, theirs) <= bound if theirs.count_nonzero() else not ours.count_nonzero()


def measured(name: str, **options: Any) -> tuple[ImportanceMethod, Parameters]:
    """Return the method and the network after a step 0 of three iterations."""
    method = make(name, **options)
    model = Parameters({"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([1.0, -1.0])})
    now = context(0, model, None, {})
    method.initialise(now)
    for scale in SCALES:
        gradients = {"a": scale * GRADIENT, "b": scale * torch.tensor([0.5, 4.0])}
        method.after_gradients(gradients, now)
        for key, value in model.values.items():
            value.data -= 0.1 * gradients[key]
    method.after_training(now)
    return method, model


def pulled(name: str, **options: Any) -> tuple[dict[str, Tensor], Parameters, Parameters, dict[str, Tensor]]:
    """Return the penalty's weights, the previous network, that of step 1, and its gradients where the data's are 0."""
    method, model = measured(name, **options)
    grown = Parameters({key: value + 0.5 for key, value in model.values.items()} | {"new": torch.ones(2)})
    now = context(1, grown, model, {})
    method.initialise(now)
    gradients = {key: torch.zeros_like(value) for key, value in grown.values.items()}
    method.after_gradients(gradients, now)
    return method.kept["weight"], model, grown, gradients


@pytest.mark.parametrize("name", METHODS)
def test_the_penalty_pulls_back_what_existed_before_by_its_weight(name: str) -> None:
    weights, model, grown, gradients = pulled(name, importance=3.0, **EVERY_MOVE[name])
    assert set(weights) == {"a", "b"}
    assert not gradients["new"].any()
    (3.0 * quadratic_penalty(grown.values, model.values, weights)).backward()  # type: ignore[no-untyped-call]
    for key in weights:
        torch.testing.assert_close(gradients[key], grown.values[key].grad)
        assert gradients[key].any()
    none = pulled(name, importance=0.0, **EVERY_MOVE[name])[-1]
    assert not any(value.any() for value in none.values())


@pytest.mark.parametrize("name", METHODS)
def test_importances_may_stay_as_they_are(name: str) -> None:
    scaled, raw = (pulled(name, normalise=choice, **EVERY_MOVE[name])[0] for choice in (True, False))
    saved = measured(name, **EVERY_MOVE[name])[0].kept
    for key in ("a", "b"):
        parts = [of[key] for of in saved.values()]
        torch.testing.assert_close(raw[key], torch.stack(parts).sum(0))
        torch.testing.assert_close(scaled[key], torch.stack([normalise(part) for part in parts]).sum(0))
        assert not torch.equal(raw[key], scaled[key])


@pytest.mark.parametrize("name", ["ewc", "rw"])
@pytest.mark.parametrize(("decay_on", "share"), [("new", 0.75), ("old", 0.25)])
def test_decay_on(name: str, decay_on: str, share: float) -> None:
    fisher = measured(name, alpha=0.75, decay_on=decay_on)[0].kept["fisher"]["a"]
    expected = torch.ones(3)
    for scale in SCALES:
        expected = share * (scale * GRADIENT) ** 2 + (1 - share) * expected
    torch.testing.assert_close(fisher, expected)


@pytest.mark.parametrize(("path_gradient", "scales"), [("after", (2.0, 5.0)), ("before", (1.0, 2.0))])
def test_path_gradient(path_gradient: str, scales: tuple[float, float]) -> None:
    """Moves are 0.1 and 0.2 times the gradient g; the whole one, with the last, is 0.8 g."""
    score = measured("pi", path_gradient=path_gradient)[0].kept["score"]["a"]
    path = scales[0] * GRADIENT * 0.1 * GRADIENT + scales[1] * GRADIENT * 0.2 * GRADIENT
    torch.testing.assert_close(score, path / (0.8 * GRADIENT) ** 2)


def test_interval_of_rw() -> None:
    """Of three iterations, two moves of one iteration or one move of two are counted."""
    for interval, moves in ((1, ((0, 1), (1, 2))), (2, ((0, 2),)), (3, ())):
        values, fisher, path = [0.0, -0.1, -0.3], torch.ones(3), torch.zeros(3)
        for iteration, scale in enumerate(SCALES):
            for first, last in moves:
                if last == iteration:
                    move = (values[last] - values[first]) * GRADIENT
                    path -= scale * GRADIENT * move / (0.5 * fisher * move**2 + 1e-8)
            fisher = 0.9 * (scale * GRADIENT) ** 2 + 0.1 * fisher
        torch.testing.assert_close(measured("rw", interval=interval)[0].kept["score"]["a"], path)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_without_the_importances_before_it_is_refused(name: str) -> None:
    method, model = make(name), Parameters({"a": torch.ones(2)})
    with pytest.raises(MethodError, match=f"{name} has no .* from step 1"):
        method.initialise(context(2, model, model, {}))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("void_in_mean", [True, False])
def test_the_loss_is_plain_cross_entropy(name: str, void_in_mean: bool) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 4, 6, 6), torch.randint(4, (2, 6, 6))
    target[0, :2] = 255
    batch, method = Batch(torch.zeros(2, 3, 6, 6), target, ("a", "b")), make(name, void_in_mean=void_in_mean)
    output = Output(logits, logits, logits, logits, logits, logits)
    now = context(0, Parameters({}), None, {})
    per_pixel = torch.nn.functional.cross_entropy(logits, target, ignore_index=255, reduction="none")
    pixels = target.numel() if void_in_mean else (target != 255).sum()
    terms = method.losses(batch, output, None, now)
    assert set(terms) == {"cross_entropy"}
    torch.testing.assert_close(terms["cross_entropy"], per_pixel.sum() / pixels)
    assert method.counts(batch, None, now) == ({} if void_in_mean else {"cross_entropy": 60})
