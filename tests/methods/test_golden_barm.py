"""BARM's functions against the outputs recorded from its released code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cispbench.harness.method import Output
from cispbench.methods import barm
from tests.methods.test_golden import TOLERANCE, Case, Values, check_bf16, check_float32, largest, recorded

pytestmark = pytest.mark.golden
WEIGHTS = {"cross_entropy": 1, "triplet": 5, "feature": 4, "group": 1, "background": 1}  # as the release adds them up


def _maps(d: Values, name: str, count: int) -> list[torch.Tensor]:
    return [d[f"{name}{i}"] for i in range(count)]


def _background(d: Values) -> Values:
    heads = _maps(d, "head", 4)
    logits = barm.join_heads(heads, True)
    return {
        "train_logits": logits,
        "eval_logits": barm.join_heads(heads, False),
        "weighted": (logits * d["weights"]).sum(),
    }


def _losses(d: Values) -> Values:
    heads, features = _maps(d, "head", 3), _maps(d, "feature", 3)
    old_heads, old_features = _maps(d, "old_head", 2), _maps(d, "old_feature", 2)
    found = barm.terms(heads, features, old_heads, old_features, d["target"].long(), threshold=float(d["threshold"]))
    assert found.keys() == WEIGHTS.keys()
    return {**found, "total": sum(WEIGHTS[name] * term for name, term in found.items())}


LOSSES = Case(
    "barm_losses", _losses, "total",
    {f"{name}{i}": f"grad_{name}{i}" for name, count in (("head", 3), ("feature", 2)) for i in range(count)},
)  # fmt: skip
CASES = [
    LOSSES,
    Case(
        "barm_prediction",
        lambda d: {"prediction": barm.prediction(d["logits"], (int(d["height"]), int(d["width"])))},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_float32(golden: Path, deviations: Any, case: Case) -> None:
    check_float32(golden, deviations, case)


def test_bf16_autocast(golden: Path, deviations: Any) -> None:
    check_bf16(golden, deviations, LOSSES)


def test_joined_heads_and_their_gradients(golden: Path) -> None:
    d = recorded(golden, "barm_background")
    inputs = d | {f"head{i}": d[f"head{i}"].clone().requires_grad_() for i in range(4)}
    found = _background(inputs)
    found.pop("weighted").backward()
    for name in ("train_logits", "eval_logits"):
        assert largest(found[name].detach(), d[name]) <= TOLERANCE
    for i in range(4):
        assert largest(inputs[f"head{i}"].grad, d[f"grad{i}"]) <= TOLERANCE


def test_the_newest_features_learn_through_their_head_alone(golden: Path) -> None:
    d = recorded(golden, "barm_losses")
    assert not d["grad_feature2"].any()
    inputs = d | {"feature2": d["feature2"].clone().requires_grad_()}
    assert not any(term.requires_grad for term in _losses(inputs).values())


@pytest.mark.parametrize("label", [0, 5, 255])
def test_terms_are_finite_for_a_target_of_one_kind(golden: Path, label: int) -> None:
    d = recorded(golden, "barm_losses")
    found = _losses(d | {"target": torch.full_like(d["target"], label)})
    assert all(torch.isfinite(torch.as_tensor(term)) for term in found.values())
    if label:
        assert found["triplet"] == 0
        assert found["feature"] == 0
    if label in (0, 255):
        assert found["background"] == 0


@pytest.mark.parametrize(("upsample", "differ"), [("probabilities", 0), ("logits", 153)])
def test_the_switch_of_what_is_up_sampled(golden: Path, upsample: Any, differ: int) -> None:
    d = recorded(golden, "barm_prediction")
    none, size = torch.empty(0), (int(d["height"]), int(d["width"]))
    output = Output(torch.empty(1, 1, *size), none, none, none, none, none, heads=(d["logits"],))
    scores = barm.BARM(barm.BARMOptions(upsample=upsample)).scores(output)
    assert int((scores.argmax(1) != d["prediction"].long()).sum()) == differ
