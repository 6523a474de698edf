"""DKD's functions against the outputs recorded from its released code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cispbench.methods import dkd
from tests.methods.test_golden import LOGITS, Case, Values, check_bf16, check_float32, recorded

pytestmark = pytest.mark.golden


def _classification(d: Values) -> Values:
    target, old, weight = d["target"], int(d["old_classes"]), float(d["positive_weight"])
    alone = [dkd.classification(d["logits"][:, [i]], target, old + i, weight) for i in range(d["logits"].shape[1])]
    return {
        "loss": dkd.classification(d["logits"], target, old, positive_weight=weight),
        "per_class": torch.stack(alone),
    }


def _memory_classification(d: Values) -> Values:
    target, weight = d["target"], float(d["positive_weight"])
    alone = [dkd.classification(d["logits"][:, [i]], target, 1 + i, weight) for i in range(d["logits"].shape[1])]
    return {"loss": dkd.memory_classification(d["logits"], target, weight), "per_class": torch.stack(alone)}


def _distillation(d: Values) -> Values:
    z, old = d["logits"], d["old_logits"]
    alone = [dkd.distillation(z[:, [i]], old[:, [i]]) for i in range(z.shape[1])]
    return {"loss": dkd.distillation(z, old), "per_class": torch.stack(alone)}


def _decomposed(d: Values) -> Values:
    positive, negative = dkd.decomposed_logits(d["features"], d["weight"])
    old_positive, old_negative = dkd.decomposed_logits(d["old_features"], d["old_weight"])
    losses = dkd.decomposed_distillation(d["features"], d["weight"], d["old_features"], d["old_weight"])
    return {
        "positive": positive, "negative": negative, "old_positive": old_positive, "old_negative": old_negative,
        "positive_loss": losses[0], "negative_loss": losses[1],
    }  # fmt: skip


def _auxiliary_of_features(d: Values) -> Values:
    # As the network computes it: the features are detached.
    weight = d["auxiliary_weight"][..., None, None]
    logits = functional.conv2d(d["features"].detach(), weight, d["auxiliary_bias"])
    return {"features_loss": dkd.auxiliary(logits)}


def _parts(part: str) -> Case:
    return Case(
        "dkd_decomposed", _decomposed, f"{part}_loss",
        {"features": f"{part}_grad_features", "weight": f"{part}_grad_weight"},
    )  # fmt: skip


CASES = [
    Case("dkd_classification", _classification, "loss", LOGITS),
    Case("dkd_memory_classification", _memory_classification, "loss", LOGITS),
    Case("dkd_distillation", _distillation, "loss", LOGITS),
    _parts("positive"),
    _parts("negative"),
    Case("dkd_auxiliary", lambda d: {"loss": dkd.auxiliary(d["logits"])}, "loss", LOGITS),
    Case(
        "dkd_auxiliary", _auxiliary_of_features, "features_loss",
        {"auxiliary_weight": "grad_auxiliary_weight", "auxiliary_bias": "grad_auxiliary_bias"},
    ),
    Case("dkd_prediction", lambda d: {"prediction": dkd.sigmoid_prediction(d["logits"][:, 1:])}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}-{case.of}")
def test_float32(golden: Path, deviations: Any, case: Case) -> None:
    check_float32(golden, deviations, case)


@pytest.mark.parametrize("case", [case for case in CASES if case.gradients], ids=lambda case: f"{case.file}-{case.of}")
def test_bf16_autocast(golden: Path, deviations: Any, case: Case) -> None:
    check_bf16(golden, deviations, case)


def test_memory_over_three_steps(golden: Path) -> None:
    d = recorded(golden, "dkd_memory")
    size, lengths = int(d["memory_size"]), d["task_lengths"].tolist()
    kept: list[tuple[int, Any]] = []
    for step in (1, 2, 3):
        labels = d[f"step{step}.labels"].long()
        if step > 1:
            labels = dkd.candidate_labels(labels, d[f"step{step}.old_logits"])
        shown = [[label for label in image.unique().tolist() if label] for image in labels]
        candidates = [*kept, *zip(d[f"step{step}.ids"].tolist(), shown, strict=True)]
        before, classes = list(candidates), list(range(1, sum(lengths[:step]) + 1))
        rng = np.random.RandomState(int(d[f"step{step}.seed"]))
        kept = dkd.balanced_memory(candidates, classes, size, rng)
        assert candidates == before
        assert classes == list(range(1, sum(lengths[:step]) + 1))
        assert [number for number, _ in kept] == d[f"step{step}.chosen_ids"].tolist()
        assert sorted(number for number, _ in kept) == d[f"step{step}.memory_ids"].tolist()
        bits = [[label in labels for label in range(9)] for _, labels in kept]
        assert bits == d[f"step{step}.chosen_labels"].bool().tolist()


def test_memory_ends_when_no_candidate_shows_a_class() -> None:
    candidates = [("a", [1]), ("b", [2, 255]), ("c", [255]), ("d", [])]
    found = dkd.balanced_memory(candidates, [1, 2, 3], 10, np.random.RandomState(0))
    assert found == [("a", [1]), ("b", [2, 255])]


def test_a_tiny_logit_is_background() -> None:
    logits = torch.tensor([1e-8, 1e-6]).view(2, 1, 1, 1)
    assert dkd.sigmoid_prediction(logits).flatten().tolist() == [0, 1]


def _slow_classification(logits: Tensor, target: Tensor, old_classes: int, weight: float, void: bool) -> float:
    total = 0.0
    for channel in range(logits.shape[1]):
        costs = []
        for z, y in zip(logits[:, channel].flatten().tolist(), target.flatten().tolist(), strict=True):
            if y != 255 or void:
                p = 1 / (1 + np.exp(-z))
                costs.append(-weight * np.log(p) if y == old_classes + channel else -np.log(1 - p))
        total += float(np.mean(costs))
    return total


@pytest.mark.parametrize("void", [True, False])
def test_void_is_negative_or_left_out(void: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 4, generator=generator)
    target = torch.randint(0, 8, (2, 5, 4), generator=generator)
    target[0, :2] = 255
    found = float(dkd.classification(logits, target, 4, 2.5, void_is_negative=void))
    assert found == pytest.approx(_slow_classification(logits, target, 4, 2.5, void), rel=1e-6)


def test_all_void_costs_nothing_where_it_is_left_out() -> None:
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = dkd.classification(logits, torch.full((1, 3, 3), 255), 1, void_is_negative=False)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_a_weight_of_zero_has_no_gradient() -> None:
    weight = torch.tensor([[0.0, 1.0, -1.0]], requires_grad=True)
    features = torch.ones(1, 3, 2, 2)
    for part in dkd.decomposed_distillation(features, weight, features, torch.ones(1, 3)):
        weight.grad = None
        part.backward(retain_graph=True)
        assert weight.grad is not None and weight.grad[0, 0] == 0 and weight.grad.any()
