"""DKD and DKD-M as methods: classifiers, the auxiliary, scores, the memory."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cispbench.harness.method import Batch, Exemplar, Group, StepContext
from cispbench.harness.models.groups import AUXILIARY
from cispbench.harness.models.interface import ClassGroup
from cispbench.methods.dkd import DKD, DKDM, DKDMOptions, DKDOptions
from cispbench.splits.settings import parse_setting

SETTING = parse_setting("overlapped-15-1")


class Model:
    """Classifiers of width 4 over a map of 2 x 2 cells; the first one is the auxiliary, and reads it detached."""

    def __init__(self, *sizes: int) -> None:
        self.groups = [
            ClassGroup(torch.nn.Parameter(torch.randn(n, 4)), torch.nn.Parameter(torch.randn(n))) for n in sizes
        ]

    def class_groups(self) -> Any:
        return self.groups

    def __call__(self, features: Tensor) -> Any:
        read = [features.detach()] + [features] * (len(self.groups) - 1)
        masks = torch.cat(
            [
                torch.einsum("bdhw,cd->bchw", x, group.rows) + group.bias[:, None, None]
                for x, group in zip(read, self.groups, strict=True)
            ],
            1,
        )
        logits = torch.nn.functional.interpolate(masks, size=(8, 8), mode="bilinear")
        rows = torch.cat([group.rows for group in self.groups])
        return SimpleNamespace(logits=logits, stages=(features,), class_tokens=rows)


def context(step: int, model: Any = None, previous: Any = None) -> StepContext:
    old, new = SETTING.old_classes(step) if step else 0, SETTING.new_classes(step)
    return StepContext(SETTING, step, old, new, model, previous)


def labelled(images: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 17, (images, 8, 8), generator=generator)
    target[0, :5] = 255
    return Batch(torch.zeros(images, 3, 8, 8), target, tuple(map(str, range(images))))


def test_the_auxiliary_takes_the_place_of_background() -> None:
    assert DKD().layout(SETTING, 0) == (Group(1, role=AUXILIARY), Group(15))
    assert DKD().layout(SETTING, 1) == (Group(1),)


def test_step_0_has_no_distillation_and_its_own_weight_of_positives() -> None:
    torch.manual_seed(0)
    model, features = Model(1, 15), torch.rand(3, 4, 2, 2)
    found = {
        weight: DKD(DKDOptions(base_positive_weight=weight, positive_weight=9.0)).losses(
            labelled(), model(features), None, context(0, model)
        )
        for weight in (1.0, 2.0)
    }
    assert set(found[1.0]) == {"classification", "auxiliary"}
    assert found[2.0]["classification"] > found[1.0]["classification"]
    assert torch.equal(found[2.0]["auxiliary"], found[1.0]["auxiliary"])


def test_the_loss_of_the_auxiliary_reaches_its_own_numbers_alone() -> None:
    torch.manual_seed(0)
    model, features = Model(1, 15), torch.rand(3, 4, 2, 2, requires_grad=True)
    DKD().losses(labelled(), model(features), None, context(0, model))["auxiliary"].backward()
    own, others = model.groups
    assert own.weight.grad.any() and own.bias.grad.any()
    assert not features.grad.any() and not others.weight.grad.any()


def test_the_auxiliary_learns_from_its_own_loss_alone() -> None:
    torch.manual_seed(0)
    old, model = Model(1, 15), Model(1, 15, 1)
    terms = DKD().losses(labelled(), model(torch.rand(3, 4, 2, 2)), old(torch.rand(3, 4, 2, 2)), context(1, model, old))
    assert list(terms) == ["classification", "auxiliary", "distillation", "positive", "negative"]
    sum(term for name, term in terms.items() if name != "auxiliary").backward()
    assert not model.groups[0].weight.grad.any() and not model.groups[0].bias.grad.any()
    assert all(group.weight.grad.any() for group in model.groups[1:])


@pytest.mark.parametrize(
    ("switch", "terms"),
    [
        ({"positive_weight": 9.0}, {"classification"}),
        ({"base_positive_weight": 9.0}, set()),  # of step 0 alone
        ({"void_is_negative": False}, {"classification"}),
        ({"auxiliary": 2.0}, {"auxiliary"}),
        ({"distillation": 1.0}, {"distillation"}),
        ({"decomposed": 1.0}, {"positive", "negative"}),
        ({"auxiliary_init": False}, set()),
    ],
)
def test_a_switch_changes_its_own_terms_alone(switch: dict[str, Any], terms: set[str]) -> None:
    torch.manual_seed(0)
    old, model = Model(1, 15), Model(1, 15, 1)
    output, previous = model(torch.rand(3, 4, 2, 2)), old(torch.rand(3, 4, 2, 2))
    before, after = (
        DKD(DKDOptions(**options)).losses(labelled(), output, previous, context(1, model, old))
        for options in ({}, switch)
    )
    assert {name for name in before if not torch.equal(before[name], after[name])} == terms


def test_every_option_is_held_by_the_test_above() -> None:
    marks = [mark for mark in test_a_switch_changes_its_own_terms_alone.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    tested = {name for switch, _ in marks[0].args[1] for name in switch}
    assert tested == {field.name for field in dataclasses.fields(DKDOptions)}


def test_new_classes_start_from_the_auxiliary() -> None:
    for auxiliary_init in (True, False):
        torch.manual_seed(0)
        model = Model(1, 15, 1)
        first, _, new = model.groups
        DKD(DKDOptions(auxiliary_init=auxiliary_init)).initialise(context(1, model))
        assert torch.equal(first.rows, new.rows) == auxiliary_init
        assert torch.equal(first.bias, new.bias) == auxiliary_init


def test_a_class_must_beat_one_half_and_the_auxiliary_is_not_read() -> None:
    logits = torch.tensor([9.0, -0.1, -0.2, 9.0, 0.1, -0.2]).view(2, 3, 1, 1)
    scores = DKD().scores(SimpleNamespace(logits=logits))  # type: ignore[arg-type]
    assert scores.shape == logits.shape
    assert scores.argmax(1).flatten().tolist() == [0, 1]


@pytest.mark.parametrize("void_is_negative", [True, False])
def test_parts_of_a_batch_weigh_as_counts_says(void_is_negative: bool) -> None:
    torch.manual_seed(0)
    method = DKD(DKDOptions(void_is_negative=void_is_negative, positive_weight=3.0))
    old, model, whole = Model(1, 15), Model(1, 15, 1), labelled()
    features, old_features = torch.rand(3, 4, 2, 2), torch.rand(3, 4, 2, 2)

    def terms(part: slice) -> tuple[dict[str, Tensor], dict[str, Any]]:
        at, piece = context(1, model, old), whole.part(part)
        previous = old(old_features[part])
        counts = {
            name: len(piece.ids) for name in ("classification", "auxiliary", "distillation", "positive", "negative")
        }
        return method.losses(piece, model(features[part]), previous, at), counts | method.counts(piece, previous, at)

    (first, weights), (second, others) = terms(slice(0, 1)), terms(slice(1, 3))
    for name, term in terms(slice(0, 3))[0].items():
        mean = (first[name] * weights[name] + second[name] * others[name]) / (weights[name] + others[name])
        torch.testing.assert_close(mean, term, msg=name)


def images(*entries: tuple[str, list[int]]) -> list[Batch]:
    """Return batches of one image, whose pixels are the labels."""
    return [
        Batch(torch.zeros(1, 3, 1, len(labels)), torch.tensor(labels).view(1, 1, -1), (name,))
        for name, labels in entries
    ]


def test_the_memory_is_seen_on_crops_or_whole() -> None:
    memory = DKDM().memory()
    assert (memory.size, memory.use, memory.labels, memory.view) == (100, "append", "step", "train")
    assert DKDM(DKDMOptions(selection_on_crops=False)).memory().view == "centre"


def test_what_was_kept_keeps_its_classes_and_new_images_have_pseudo_labels() -> None:
    """The previous network is sure of class 3 in the first pixel, sure of the auxiliary, less sure of class 4."""
    logits = torch.full((1, 17, 1, 2), -5.0)
    logits[0, 3, 0, 0], logits[0, 4, 0, 1], logits[0, 0] = 5.0, 1.0, 9.0
    previous: Any = lambda *inputs: SimpleNamespace(logits=logits)  # noqa: E731
    kept = [Exemplar("old", 0, (1, 2))]
    chosen = DKDM(DKDMOptions(memory=9)).select_exemplars(
        images(("new", [0, 0]), ("own", [16, 0]), ("void", [255, 0])), kept, context(2, None, previous)
    )
    assert set(chosen) == {Exemplar("old", 0, (1, 2)), Exemplar("new", 1, (3,)), Exemplar("own", 1, (16,))}


def test_the_choice_follows_the_random_state() -> None:
    entries = [(f"image{i}", [0, 1 + i % 15]) for i in range(60)]
    found = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        found.append(DKDM(DKDMOptions(memory=15)).select_exemplars(images(*entries), [], context(1)))
    assert found[0] == found[1] != found[2]
    assert sorted(label for exemplar in found[2] for label in exemplar.classes) == list(range(1, 16))
