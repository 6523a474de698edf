"""SSUL's functions against the outputs recorded from its released code, and against slow, plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cispbench.harness.data.labels import relabel, to_table
from cispbench.methods import losses, ssul
from tests.methods.test_golden import LOGITS, Case, Values, check_bf16, check_float32, recorded

pytestmark = pytest.mark.golden


def _labels(d: Values) -> Values:
    everywhere = torch.ones_like(d["ade_raw"]).bool()
    return {
        "voc_train": ssul.with_unknown(d["voc_val"].long(), d["saliency"] > 0),
        "ade_train": ssul.with_unknown(d["ade_val"].long(), everywhere),
    }


def _pseudo(d: Values) -> Values:
    target, threshold = d["target"].long(), float(d["threshold"])
    return {"pseudo_target": ssul.pseudo_labels(target, d["old_logits"], threshold=threshold, background=1)}


CASES = [
    Case("ssul_labels", _labels),
    Case("ssul_loss", lambda d: {"mean": losses.bce_with_ignore(d["logits"], d["target"].long())}, "mean", LOGITS),
    Case("ssul_pseudo_labels", _pseudo),
    Case("ssul_prediction", lambda d: {"prediction": ssul.prediction(d["logits"])}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_float32(golden: Path, deviations: Any, case: Case) -> None:
    check_float32(golden, deviations, case)


@pytest.mark.parametrize("case", [case for case in CASES if case.gradients], ids=lambda case: case.file)
def test_bf16_autocast(golden: Path, deviations: Any, case: Case) -> None:
    check_bf16(golden, deviations, case)


@pytest.mark.parametrize("dataset", ["voc", "ade"])
def test_which_classes_each_kind_of_image_shows(golden: Path, dataset: str) -> None:
    """A step's images show its classes, the memory's all seen so far, test images all."""
    d = recorded(golden, "ssul_labels")
    order, sizes, step = d[f"{dataset}_order"].tolist(), d[f"{dataset}_step_sizes"].tolist(), int(d[f"{dataset}_step"])
    first, end = sum(sizes[:step]), sum(sizes[: step + 1])
    for kind, shown in (("val", range(first, end)), ("memory", range(end)), ("test", range(sum(sizes)))):
        table = [255] * 256
        for label, number in enumerate(order):
            table[number] = label if label in shown else 0
        found = relabel(d[f"{dataset}_raw"], to_table(table))
        assert torch.equal(found, d[f"{dataset}_{kind}"]), kind


@pytest.mark.parametrize("dataset", ["voc", "ade"])
def test_unshifted_labels_of_the_memory_are_other_channels(golden: Path, dataset: str) -> None:
    memory = recorded(golden, "ssul_labels")[f"{dataset}_memory"].long()
    shifted = ssul.with_unknown(memory, torch.zeros_like(memory).bool())
    inside = memory != 255
    assert torch.equal(shifted[inside], memory[inside] + 1)
    assert torch.equal(shifted[~inside], memory[~inside])


def test_memory_over_three_steps(golden: Path) -> None:
    d = recorded(golden, "ssul_memory_selection")
    sizes, images, size = d["step_sizes"].tolist(), d["images"].tolist(), int(d["size"])
    presence, kept = torch.zeros(0, sum(sizes), dtype=torch.bool), []
    for step in (1, 2, 3):
        old, target = sum(sizes[:step]), d[f"step{step}.target"].long()
        if step > 1:
            target = ssul.pseudo_labels(target, d[f"step{step}.old_logits"])
        before = target.clone()
        found = torch.nn.functional.pad(ssul.presence(target, old), (0, sum(sizes) - old))
        assert torch.equal(target, before)
        candidates = [*kept, *range(len(presence), len(presence) + images[step - 1])]
        assert candidates == d[f"step{step}.candidates"].tolist()
        presence = torch.cat([presence, found])
        order, class_order = ssul.random_orders(candidates, old)
        assert order == d[f"step{step}.shuffled"].tolist()
        assert class_order == d[f"step{step}.class_order"].tolist()
        kept = ssul.select_exemplars(presence[:, :old], order, class_order, size)
        assert kept == d[f"step{step}.selected"].tolist()
        assert ssul.select_exemplars(presence[:, :old], torch.tensor(order), torch.tensor(class_order), size) == kept
        selected = d[f"step{step}.selected_presence"].bool()
        assert torch.equal(presence[kept][:, 1:old], selected[:, 1:])


def test_presence_is_what_each_image_shows() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 9, (5, 3, 3), generator=generator)
    target[0, 0, 0] = 255
    slow = [[bool((image == label + 1).any()) for label in range(1, 6)] for image in target]
    assert ssul.presence(target, 6)[:, 1:].tolist() == slow


def _slow_selection(presence: Tensor, order: list[int], class_order: list[int], size: int) -> list[int]:
    pool, chosen = list(order), {label: [] for label in sorted(class_order)}
    while sum(map(len, chosen.values())) < size:
        moved = False
        for label in class_order:
            for row in pool:
                if presence[row, label] and sum(map(len, chosen.values())) < size:
                    chosen[label].append(row)
                    pool.remove(row)
                    moved = True
                    break
        if not moved:
            break
    return [row for rows in chosen.values() for row in rows]


@pytest.mark.parametrize("seed", range(20))
def test_selection_is_the_plain_one(seed: int) -> None:
    rng = np.random.RandomState(seed)
    presence = torch.from_numpy(rng.rand(30, 6) < 0.2)
    order, class_order = rng.permutation(30)[:25].tolist(), (rng.permutation(5) + 1).tolist()
    for size in (1, 7, 20, 100):
        found = ssul.select_exemplars(presence, order, class_order, size)
        assert found == _slow_selection(presence, order, class_order, size)
        assert len(set(found)) == len(found) <= size
