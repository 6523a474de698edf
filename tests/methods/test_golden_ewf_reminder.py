"""The functions of EWF and REMINDER against outputs recorded from the releases (tests/golden)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import starmap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.methods import ewf, reminder
from cispbench.splits.errors import MethodError
from tests.methods.test_golden import TOLERANCE, Case, Values, entries, largest, recorded

pytestmark = pytest.mark.golden


def _part(d: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in d.items() if key.startswith(f"{prefix}.")}


def _fusion(d: Values) -> Values:
    old, new = _part(d, "old"), _part(d, "new")
    weight = ewf.fusion_weight(int(d["old_classes"]), int(d["new_classes"]))
    found: dict[str, Any] = {"weight": weight}
    for prefix, share in (("fused", None), ("threshold", 0.45)):
        found |= {f"{prefix}.{name}": value for name, value in ewf.fuse(old, new, weight, moved_share=share).items()}
    return found


def _class_similarity(delta: float) -> Case:
    def compute(d: Values) -> Values:
        target, classes = d["target"].long(), d["logits"].shape[1]
        found = reminder.batch_prototypes(d["features"], target, list(range(int(d["old_classes"]), classes)), classes)
        loss = reminder.class_similarity_distillation(
            d["logits"], d["old_logits"], target, found, d["old_prototypes"],
            delta=delta, temperature=float(d["temperature"]),
        )  # fmt: skip
        return {"batch_prototypes": found, f"loss_delta{delta}": loss}

    return Case("reminder_class_similarity", compute, f"loss_delta{delta}", {"logits": f"grad_delta{delta}"})


def _prototypes(d: Values) -> Values:
    batches = list(zip(d["features"], d["targets"].long(), strict=True))
    old, classes = d["old_prototypes"], d["counts"].shape[1]
    running = [reminder.running_prototypes(iter(batches[: k + 1]), old, classes) for k in range(len(batches))]
    return {"prototypes": running[-1], "running": torch.stack(running)}


CASES = [
    Case("ewf_fusion", _fusion),
    _class_similarity(0.0),
    _class_similarity(1.0),
    Case("reminder_prototypes", _prototypes),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}-{case.of}")
def test_float32(golden: Path, deviations: Any, case: Case) -> None:
    d = recorded(golden, case.file)
    if "running" in d:
        # Ours returns the old prototypes in every call, the release copies them at the end alone.
        d["running"][:, : int(d["old_classes"])] = d["old_prototypes"]
    found = entries(case, d)
    for name, ours in found.items():
        assert ours.shape == d[name].shape, name
        deviation = largest(ours, d[name])
        deviations.note(f"{case.file} {name}", deviation, TOLERANCE)
        assert deviation <= TOLERANCE, name
    if case.file == "ewf_fusion":
        assert {key for key in d if key.startswith(("fused.", "threshold."))} == found.keys() - {"weight"}


def test_inputs_of_a_fusion_stay(golden: Path) -> None:
    d = recorded(golden, "ewf_fusion")
    old, new = _part(d, "old"), _part(d, "new")
    fused = ewf.fuse(old, new, 0.5)
    for value in fused.values():
        value.fill_(7.0)
    again = recorded(golden, "ewf_fusion")
    assert all(torch.equal(d[key], again[key]) for key in d)


def test_integers_are_not_fused() -> None:
    fused = ewf.fuse({"count": torch.tensor(10)}, {"count": torch.tensor(5), "new": torch.ones(1)}, 0.5)
    assert fused["count"] == 5 and fused["new"] == 1


@pytest.mark.parametrize("new", [{}, {"weight": torch.zeros(3, 2)}], ids=["absent", "another shape"])
def test_what_cannot_be_fused_is_refused(new: dict[str, Tensor]) -> None:
    with pytest.raises(MethodError, match="weight is \\(2,\\) in the previous model"):
        ewf.fuse({"weight": torch.zeros(2)}, new, 0.5)


def test_prototypes_are_means_of_the_features_up_sampled(golden: Path) -> None:
    """The short way (masks brought to the features' grid) and the long one agree."""
    d = recorded(golden, "reminder_class_similarity")
    target = d["target"].long()
    larger = torch.nn.functional.interpolate(d["features"], size=target.shape[1:], mode="bilinear", align_corners=True)
    found = reminder.batch_prototypes(d["features"], target, [4, 5, 6], 7)
    for number in (4, 5, 6):
        pixels = larger.movedim(1, -1)[target == number]
        expected = pixels.mean(0) if len(pixels) else torch.zeros(larger.shape[1])
        torch.testing.assert_close(found[number], expected, rtol=1e-5, atol=1e-6)
    assert not found[:4].any()


def test_prototypes_keep_their_precision_under_autocast(golden: Path) -> None:
    d = recorded(golden, "reminder_class_similarity")
    arguments = d["features"], d["target"].long(), [4, 5, 6], 7
    with torch.autocast("cpu", torch.bfloat16):
        inside = reminder.batch_prototypes(*arguments)
    assert torch.equal(inside, reminder.batch_prototypes(*arguments))


def test_a_batch_without_new_classes_costs_0(golden: Path) -> None:
    """The release computes 0 / 0 there."""
    d = recorded(golden, "reminder_class_similarity")
    assert torch.isnan(d["loss_without_new"])
    logits, target = d["logits"].clone().requires_grad_(), torch.zeros_like(d["target"].long())
    target[:, 0] = 255
    loss = reminder.class_similarity_distillation(
        logits, d["old_logits"], target, d["batch_prototypes"], d["old_prototypes"]
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0 and logits.grad is not None and not logits.grad.any()


def test_a_prototype_of_zeros_is_as_similar_to_all(golden: Path) -> None:
    d = recorded(golden, "reminder_class_similarity")
    arguments = d["logits"], d["old_logits"], d["target"].long()
    zeros = torch.zeros_like(d["batch_prototypes"])
    first, second = starmap(
        reminder.class_similarity_distillation,
        [(*arguments, zeros, d["old_prototypes"]), (*arguments, d["batch_prototypes"], 0 * d["old_prototypes"])],
    )
    assert torch.isfinite(first)
    torch.testing.assert_close(first, second)


def test_prototypes_of_no_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        reminder.running_prototypes([], torch.zeros(0, 4), 3)


def test_prototypes_of_step_0_have_the_background() -> None:
    features, target = torch.ones(1, 4, 2, 2), torch.zeros(1, 8, 8, dtype=torch.int64)
    target[:, 4:] = 2
    found = reminder.running_prototypes([(features, target)], torch.zeros(0, 4), 3)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 1.0])[:, None].expand(3, 4))
