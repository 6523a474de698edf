"""RCIL's functions, and a block with two branches, against the outputs recorded from its released code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.methods import rcil
from tests.methods.test_golden import TOLERANCE, Case, Values, check_bf16, check_float32, largest, recorded

pytestmark = pytest.mark.golden
FACTORS = {"voc": (0.01, 5e-4), "ade": (5e-6, 5e-7)}


def _cube(d: Values) -> Values:
    features, old_features = ([d[f"{old}feature{i}"] for i in range(4)] for old in ("", "old_"))
    found = {}
    for dataset, factors in FACTORS.items():
        pair = rcil.pooled_cube(
            features, old_features, d["logits"], d["old_logits"],
            int(d["old_classes"]), int(d["new_classes"]), *factors,
        )  # fmt: skip
        found |= dict(zip((f"spatial_{dataset}", f"channel_{dataset}"), pair, strict=True))
    return found


def _branch(d: Values, which: str) -> tuple[Tensor | None, ...]:
    norm = (d[f"{which}_{part}"] for part in ("gamma", "beta", "mean", "variance"))
    return (d[f"{which}_weight"], d.get(f"{which}_bias"), *norm)


def _merge(d: Values) -> Values:
    merged = rcil.merge_branches(_branch(d, "first"), _branch(d, "second"), float(d["eps"]))  # type: ignore[arg-type]
    return dict(zip(("weight", "bias"), merged, strict=True))


def _gradients(kind: str, maps: int) -> dict[str, str]:
    return {f"feature{i}": f"grad_{kind}_feature{i}" for i in range(maps)}


CASES = [
    Case("rcil_pooled_cube", _cube, "spatial_voc", {**_gradients("spatial", 4), "logits": "grad_spatial_logits"}),
    Case("rcil_pooled_cube", _cube, "channel_voc", _gradients("channel", 4)),
    Case("rcil_merge", _merge),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}-{case.of}")
def test_float32(golden: Path, deviations: Any, case: Case) -> None:
    check_float32(golden, deviations, case)


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: f"{case.file}-{case.of}")
def test_bf16_autocast(golden: Path, deviations: Any, case: Case) -> None:
    check_bf16(golden, deviations, case)


def test_the_channel_distance_does_not_read_logits(golden: Path) -> None:
    d = recorded(golden, "rcil_pooled_cube")
    assert not d["grad_channel_logits"].any()
    assert not _cube(d | {"logits": d["logits"].clone().requires_grad_()})["channel_voc"].requires_grad


def test_mixed_branches(golden: Path) -> None:
    d = recorded(golden, "rcil_block")
    mixed = rcil.mix_branches(d["first_branch"], d["second_branch"], draws=d["draws"])
    for channel, draw in enumerate(d["draws"].flatten().tolist()):
        first, second = d["first_branch"][:, channel], d["second_branch"][:, channel]
        wanted = first if draw < 0.33 else second if draw < 0.66 else (first + second) / 2
        assert largest(mixed[:, channel], wanted) <= TOLERANCE
    halved = rcil.mix_branches(d["first_branch"], d["second_branch"])
    assert largest(halved, (d["first_branch"] + d["second_branch"]) / 2) <= TOLERANCE


def test_the_borders_of_draws() -> None:
    draws = torch.tensor([0.0, 0.3299, 0.33, 0.6599, 0.66, 0.99]).view(1, -1, 1, 1)
    mixed = rcil.mix_branches(torch.ones_like(draws), torch.zeros_like(draws), draws)
    assert mixed.flatten().tolist() == [1.0, 1.0, 0.0, 0.0, 0.5, 0.5]
