"""SSUL and SSUL-M as methods: labels in channels, branches, scores, the memory."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cispbench.harness.method import Batch, Exemplar, Group, StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.methods import ssul
from cispbench.methods.losses import bce_with_ignore
from cispbench.methods.ssul import SSUL, SSULM, SSULMOptions, SSULOptions
from cispbench.splits.settings import parse_setting

SETTING = parse_setting("overlapped-15-1")


def context(step: int, previous: Any = None) -> StepContext:
    old, new = SETTING.old_classes(step) if step else 0, SETTING.new_classes(step)
    return StepContext(SETTING, step, old, new, None, previous)  # type: ignore[arg-type]


def batch(target: list[int], salient: list[int], origin: list[int] | None = None) -> Batch:
    """Return images of one pixel."""
    return Batch(
        torch.zeros(len(target), 3, 1, 1),
        torch.tensor(target).view(-1, 1, 1),
        tuple(f"image{number}" for number in range(len(target))),
        None if origin is None else torch.tensor(origin),
        {"saliency": torch.tensor(salient).view(-1, 1, 1)},
    )


def test_branches() -> None:
    assert SSUL().layout(SETTING, 0) == (Group(extra=1, role="unknown"), Group(1, role="background"), Group(15))
    assert SSUL().layout(SETTING, 1) == (Group(1),)


def test_only_saliency_needs_maps() -> None:
    (map_,) = SSUL().companions(SETTING)
    assert (map_.name, map_.folder, map_.fill, map_.at_test) == ("saliency", "saliency_map", 0, False)
    for unknown in ("background", "none"):
        assert SSUL(SSULOptions(unknown=unknown)).companions(SETTING) == ()


@pytest.mark.parametrize(
    ("unknown", "labels"),
    [
        ("saliency", [1, 0, 17, 17, 255, 255]),
        ("background", [0, 0, 17, 17, 255, 255]),
        ("none", [1, 1, 17, 17, 255, 255]),
    ],
)
def test_labels_in_channels(unknown: Any, labels: list[int]) -> None:
    given = batch([0, 0, 16, 16, 255, 255], [0, 7, 0, 7, 0, 7])
    before = given.target.clone()
    prepared = SSUL(SSULOptions(unknown=unknown)).prepare(given, context(1))
    assert prepared.target.flatten().tolist() == labels
    assert torch.equal(given.target, before)
    assert prepared.images is given.images


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, [0, 3, 255, 0, 17]),
        ({"memory_labels": "shifted"}, [1, 4, 255, 0, 17]),
        ({"unknown": "background"}, [0, 3, 255, 0, 17]),
        ({"unknown": "background", "memory_labels": "shifted"}, [1, 4, 255, 0, 17]),
        ({"unknown": "none"}, [0, 3, 255, 1, 17]),
    ],
)
def test_labels_of_exemplars(changes: dict[str, Any], labels: list[int]) -> None:
    """Of exemplars (the first three images) no background is unknown; released, their labels are not shifted."""
    given = batch([0, 3, 255, 0, 16], [9, 9, 9, 9, 9], origin=[0, 0, 0, 1, 1])
    prepared = SSULM(SSULMOptions(**changes)).prepare(given, context(1))
    assert prepared.target.flatten().tolist() == labels


def test_background_of_step_0_is_no_exemplars() -> None:
    given = batch([0, 0, 5], [0, 1, 1], origin=[0, 0, 0])
    assert SSULM().prepare(given, context(0)).target.flatten().tolist() == [1, 0, 6]


def test_a_class_must_beat_background_and_unknown_together() -> None:
    logits = torch.tensor([0.0, 0.0, 2.0]).view(1, 3, 1, 1)
    output: Any = SimpleNamespace(logits=logits)
    torch.testing.assert_close(SSUL().scores(output).flatten(), torch.tensor([1.0, torch.tensor(2.0).sigmoid()]))


def test_pseudo_labels_can_be_left_out() -> None:
    given = SSUL().prepare(batch([0, 16], [0, 0]), context(1))
    logits = torch.randn(2, 18, 1, 1)
    old = torch.full((2, 17, 1, 1), -9.0)
    old[:, 5] = 9.0
    output, previous = SimpleNamespace(logits=logits), SimpleNamespace(logits=old)
    for switched, target in ((True, [5, 17]), (False, [1, 17])):
        method = SSUL(SSULOptions(pseudo_labels=switched))
        loss = method.losses(given, output, previous, context(1))["binary_cross_entropy"]  # type: ignore[arg-type]
        assert torch.equal(loss, bce_with_ignore(logits, torch.tensor(target).view(2, 1, 1)))


def test_parts_of_a_batch_weigh_by_their_labelled_pixels() -> None:
    method, generator = SSUL(), torch.Generator().manual_seed(0)
    logits = torch.randn(4, 18, 3, 3, generator=generator)
    target = torch.randint(0, 17, (4, 3, 3), generator=generator)
    target[0, :2] = 255
    whole = Batch(torch.zeros(4, 3, 3, 3), target, tuple("abcd"))
    old: Any = SimpleNamespace(logits=4 * torch.randn(4, 17, 3, 3, generator=generator))

    def terms(part: slice) -> tuple[Tensor, Any]:
        output, previous = SimpleNamespace(logits=logits[part]), SimpleNamespace(logits=old.logits[part])
        piece = whole.part(part)
        loss = method.losses(piece, output, previous, context(1))["binary_cross_entropy"]  # type: ignore[arg-type]
        return loss, method.counts(piece, previous, context(1))["binary_cross_entropy"]  # type: ignore[arg-type]

    parts = [terms(slice(0, 1)), terms(slice(1, 4))]
    mean = sum(loss * count for loss, count in parts) / sum(count for _, count in parts)
    torch.testing.assert_close(mean, terms(slice(0, 4))[0])


def test_new_classes_start_from_the_branch_of_unknown() -> None:
    for branch_init in (True, False):
        torch.manual_seed(0)
        model, method = build_model("deeplabv3-tiny-branches", 24), SSUL(SSULOptions(branch_init=branch_init))
        for step in (0, 1):
            model.grow(method.layout(SETTING, step))
        unknown, *_, new = (group.branch for group in model.class_groups())
        unknown.features[1].running_mean.fill_(3)
        method.initialise(dataclasses.replace(context(1), model=model))
        alike = [torch.equal(a, b) for a, b in zip(unknown.parameters(), new.parameters(), strict=True)]
        assert all(alike) == branch_init
        assert bool((new.features[1].running_mean == 3).all()) == branch_init
        assert unknown.weight is not new.weight


def shown(name: str, *labels: int) -> tuple[str, list[int]]:
    return name, list(labels)


def images(*entries: tuple[str, list[int]]) -> list[Batch]:
    """Return batches of one image, whose pixels are the labels."""
    return [
        Batch(torch.zeros(1, 3, 1, len(labels)), torch.tensor(labels).view(1, 1, -1), (name,))
        for name, labels in entries
    ]


def test_exemplars_take_half_of_each_batch_and_show_all_classes_so_far() -> None:
    memory = SSULM().memory()
    assert (memory.size, memory.use, memory.share) == (100, "replace", 0.5)
    assert (memory.labels, memory.view) == ("seen", "centre")
    assert SSUL().memory() is None


def test_the_memory_of_step_1_is_chosen_by_the_labels() -> None:
    found = SSULM(SSULMOptions(memory=3)).select_exemplars(
        images(shown("a", 0, 1), shown("b", 1, 2, 255), shown("c", 0, 255), shown("d", 15, 2)), [], context(1)
    )
    assert {(e.id, e.classes) for e in found} == {("a", (1,)), ("b", (1, 2)), ("d", (2, 15))}
    assert {e.step for e in found} == {0}


def test_what_was_kept_keeps_its_classes_and_new_images_have_pseudo_labels() -> None:
    """The previous network is sure of class 3 in the first pixel, and not sure in the second."""
    logits = torch.full((1, 18, 1, 2), -5.0)
    logits[0, 4, 0, 0], logits[0, 5, 0, 1] = 5.0, 0.1
    previous: Any = lambda *inputs: SimpleNamespace(logits=logits)  # noqa: E731
    kept = [Exemplar("old", 0, (1, 2))]
    chosen = SSULM(SSULMOptions(memory=9)).select_exemplars(
        images(shown("new", 0, 0), shown("own", 16, 0), shown("void", 255, 0)), kept, context(2, previous)
    )
    assert set(chosen) == {Exemplar("old", 0, (1, 2)), Exemplar("new", 1, (3,)), Exemplar("own", 1, (16,))}


def test_the_choice_is_that_of_the_functions_and_does_not_depend_on_the_random_state() -> None:
    generator = np.random.RandomState(3)
    entries = [shown(f"image{i}", 0, *generator.randint(1, 16, 3)) for i in range(40)]
    method = SSULM(SSULMOptions(memory=12))
    np.random.seed(5)
    found = [e.id for e in method.select_exemplars(images(*entries), [], context(1))]
    np.random.seed(6)
    again = [e.id for e in method.select_exemplars(images(*entries), [], context(1))]
    presence = torch.tensor([[label in labels for label in range(16)] for _, labels in entries])
    rows = ssul.select_exemplars(presence, *ssul.random_orders(range(40), 16), 12)
    assert found == again == [f"image{row}" for row in rows]
