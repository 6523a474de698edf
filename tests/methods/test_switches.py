"""Switches of the methods: each changes what it names and nothing else, and both of its sides are what they say."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cispbench.harness.method import Batch, Output, StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.ablation import load_ablation
from cispbench.harness.recipes.fields import load_strict
from cispbench.harness.recipes.layers import load_recipe
from cispbench.methods import mbs, plop
from cispbench.methods.finetune import FineTune
from cispbench.methods.losses import cross_entropy
from cispbench.methods.mbs import MBS, MBSOptions
from cispbench.methods.mib import MiB, MiBOptions
from cispbench.methods.plop import PLOP, PLOPOptions
from cispbench.splits.settings import parse_setting

OLD, NEW, SIDE, GRID, WIDTH = 4, 2, 16, 4, 8
SETTING = parse_setting("overlapped-15-5")


def output(classes: int, seed: int) -> Output:
    """A model's output on random features; its predictions are sure enough for pseudo-labels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    masks = 4 * draw(2, classes, GRID, GRID)
    logits = functional.interpolate(masks, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    stages = tuple(draw(2, 3, GRID, GRID) for _ in range(3))
    return Output(
        logits=logits, masks=masks, patches=draw(2, GRID * GRID, WIDTH), class_features=draw(2, classes, WIDTH),
        class_tokens=draw(classes, WIDTH), encoded=draw(2, WIDTH, GRID, GRID), stages=stages,
    )  # fmt: skip


def context(**changes: Any) -> StepContext:
    fields = {"setting": SETTING, "step": 1, "old_classes": OLD, "new_classes": NEW, "model": None, "previous": None}
    return StepContext(**(fields | changes))


@pytest.fixture
def batch() -> Batch:
    """Background, both new classes and void, the latter three as blocks."""
    target = torch.zeros(2, SIDE, SIDE, dtype=torch.int64)
    target[0, :4], target[1, :, :4], target[:, 12:, 8:12] = OLD, OLD + 1, 255
    return Batch(torch.zeros(2, 3, SIDE, SIDE), target, ("a", "b"))


@pytest.fixture
def outputs() -> tuple[Output, Output]:
    return output(OLD + NEW, 0), output(OLD, 1)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The names of the terms that are not the same in both."""
    same = {name for name in before.keys() & after.keys() if torch.equal(before[name], after[name])}
    return (before.keys() | after.keys()) - same


# MBS: every part, and what is left without any.


@pytest.fixture
def mbs_terms(batch, outputs):
    def compute(**options: Any) -> dict[str, Tensor]:
        return MBS(MBSOptions(**options)).losses(batch, *outputs, context())

    return compute


@pytest.mark.parametrize(
    ("switch", "terms", "gone"),
    [
        # The weights of the patches are read off the pseudo-labelled target.
        ({"pseudo_labels": False}, {"cross_entropy", "patch_distillation"}, False),
        ({"threshold": 0.99}, {"cross_entropy", "patch_distillation"}, False),
        ({"patch_distillation": False}, {"patch_distillation"}, True),
        ({"patch_mean": "all"}, {"patch_distillation"}, False),
        ({"class_distillation": False}, {"class_distillation"}, True),
        ({"output_distillation": False}, {"output_distillation"}, True),
        ({"distillation": 50.0}, {"output_distillation"}, False),
        ({"label_guidance": False}, {"output_distillation"}, False),
        ({"orthogonality": False}, {"orthogonality"}, True),
        ({"token_init": False}, set(), False),
    ],
)
def test_a_switch_of_mbs_changes_its_own_terms_alone(mbs_terms, switch, terms, gone):
    before, after = mbs_terms(), mbs_terms(**switch)
    assert len(before) == 5
    assert changed(before, after) == terms
    assert (before.keys() - after.keys() == terms) if gone else (before.keys() == after.keys())


def test_every_option_of_mbs_is_held_by_a_test_above():
    marks = [mark for mark in test_a_switch_of_mbs_changes_its_own_terms_alone.pytestmark if mark.name == "parametrize"]
    tested = {name for switch, *_ in marks[0].args[1] for name in switch}
    assert tested == {field.name for field in dataclasses.fields(MBSOptions)}


def no_part() -> MBS:
    words = load_ablation(MBS)["no part"]
    recipe = load_recipe(MBS, SETTING, "paper", overrides=words)
    return MBS(load_strict(MBSOptions, recipe.method, "method"))


def test_without_any_part_mbs_is_finetuning(batch, outputs):
    ours = no_part().losses(batch, *outputs, context())
    theirs = FineTune().losses(batch, *outputs, context())
    assert ours.keys() == theirs.keys() == {"cross_entropy"}
    assert torch.equal(ours["cross_entropy"], theirs["cross_entropy"])


def grown(name: str) -> Any:
    torch.manual_seed(0)
    model = build_model(name, SIDE)
    model.grow(OLD)
    model.grow(NEW)
    for group in model.class_groups():
        torch.nn.init.normal_(group.bias)
    return model


def rows_of(model: Any) -> list[tuple[Tensor, Tensor]]:
    return [(group.rows.detach().clone(), group.bias.detach().clone()) for group in model.class_groups()]


def equal(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> list[bool]:
    return [torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True)]


def test_token_initialisation_copies_the_background_and_its_absence_keeps_random_tokens():
    model = grown("segmenter-tiny")
    before = rows_of(model)
    no_part().initialise(context(model=model))
    assert all(equal(rows_of(model), before))
    MBS(MBSOptions()).initialise(context(model=model))
    after = rows_of(model)
    assert equal(after, before) == [True, True, False]
    assert torch.equal(after[-1][0], before[0][0].expand(NEW, -1)) and torch.equal(after[-1][1], before[-1][1])


def test_without_pseudo_labels_the_cross_entropy_is_on_the_steps_labels(mbs_terms, batch, outputs):
    term = mbs_terms(pseudo_labels=False)["cross_entropy"]
    assert torch.equal(term, cross_entropy(outputs[0].logits, batch.target))


def test_without_label_guidance_the_old_output_is_padded_with_zeros(mbs_terms, outputs):
    new, old = outputs
    soft = functional.pad(old.logits.double().softmax(1), (0, 0, 0, 0, 0, NEW))
    expected = -25.0 * (soft * new.logits.double().log_softmax(1)).mean()
    torch.testing.assert_close(mbs_terms(label_guidance=False)["output_distillation"].double(), expected)


def test_the_mean_over_patches_counts_the_positive_ones_or_all():
    generator = torch.Generator().manual_seed(0)
    features, old = torch.randn(2, 5, 3, generator=generator), torch.randn(2, 5, 3, generator=generator)
    weights = torch.tensor([[1.0, 0.5, 0.0, 0.0, 0.25], [0.0, 0.0, 0.0, 1.0, 0.75]])
    total = float(((features - old) ** 2 * weights[..., None]).sum())
    assert float(mbs.adaptive_feature_distillation(features, old, weights)) == pytest.approx(total / (5 * 3))
    over_all = mbs.adaptive_feature_distillation(features, old, weights, "all")
    assert float(over_all) == pytest.approx(total / (10 * 3))


# MiB.


def test_void_in_mibs_mean(batch, outputs):
    def term(void_in_mean: bool, target: Tensor) -> float:
        options = MiBOptions(void_in_mean=void_in_mean)
        terms = MiB(options).losses(dataclasses.replace(batch, target=target), *outputs, context())
        return float(terms["cross_entropy"])

    share = float((batch.target == 255).float().mean())
    assert 0 < share < 0.5
    assert term(True, batch.target) == pytest.approx(term(False, batch.target) * (1 - share))
    without = batch.target.where(batch.target != 255, 0)
    assert term(True, without) == pytest.approx(term(False, without))


@pytest.mark.parametrize("method", [MiB, PLOP])
def test_the_backgrounds_own_bias_is_lowered_or_kept(method):
    for lower in (True, False):
        model = grown("deeplabv3-tiny")
        before = rows_of(model)
        method(method.Options(lower_background=lower)).initialise(context(model=model))
        after = rows_of(model)
        bias = before[0][1][0] - math.log(NEW + 1)
        torch.testing.assert_close(after[-1][1], bias.expand(NEW))
        assert torch.equal(after[-1][0], before[0][0][:1].expand(NEW, -1))
        torch.testing.assert_close(after[0][1][0], bias if lower else before[0][1][0])
        assert torch.equal(after[0][1][1:], before[0][1][1:]) and torch.equal(after[0][0], before[0][0])


def test_without_balanced_initialisation_the_model_stays_as_it_was():
    model = grown("deeplabv3-tiny")
    before = rows_of(model)
    MiB(MiBOptions(balanced_init=False)).initialise(context(model=model))
    assert all(equal(rows_of(model), before))


# PLOP.

THRESHOLDS = torch.full((OLD + NEW,), 0.02)


@pytest.fixture
def plop_terms(batch, outputs):
    def compute(**options: Any) -> dict[str, Tensor]:
        method = PLOP(PLOPOptions(**options))
        method.load_state_dict({"thresholds": THRESHOLDS})
        return method.losses(batch, *outputs, context())

    return compute


@pytest.mark.parametrize(
    ("switch", "terms"),
    [
        ({"adaptive_factor": False}, {"cross_entropy"}),
        ({"void_in_mean": False}, {"cross_entropy"}),
        ({"entropy": "sum"}, {"cross_entropy"}),
        ({"pod": 0.1}, {"pod"}),
        ({"pod_logits": 0.1}, {"pod"}),
        ({"scales": (1, 2)}, {"pod"}),
        ({"median": "true"}, set()),
        ({"lower_background": False}, set()),
    ],
)
def test_a_switch_of_plop_changes_its_own_term_alone(plop_terms, switch, terms):
    assert changed(plop_terms(), plop_terms(**switch)) == terms


def test_plops_cross_entropy_with_and_without_factor_and_void(plop_terms, batch, outputs):
    new, old = outputs
    target, factor = plop.pseudo_labels(batch.target, old.logits, THRESHOLDS, math.log(OLD + NEW), OLD)
    assert ((factor > 0.05) & (factor < 0.95)).all() and (target == 255).sum() > (batch.target == 255).sum()
    pixel = functional.cross_entropy(new.logits, target, ignore_index=255, reduction="none")
    counted = (target != 255).sum()
    for adaptive, scale in ((True, factor[:, None, None]), (False, 1.0)):
        for void, pixels in ((True, target.numel()), (False, counted)):
            ours = plop_terms(adaptive_factor=adaptive, void_in_mean=void)["cross_entropy"]
            torch.testing.assert_close(ours, (pixel * scale).sum() / pixels)


def test_the_mean_entropy_is_a_kth_of_the_normalised_one():
    probabilities = output(OLD, 3).logits.softmax(1)
    mean, total = plop.entropy(probabilities), plop.entropy(probabilities, "sum")
    torch.testing.assert_close(OLD * mean, total)
    uniform = torch.full((1, OLD, 1, 1), 1 / OLD)
    assert float(plop.entropy(uniform, "sum")) == pytest.approx(1.0, abs=1e-6)
    assert float(plop.entropy(uniform)) == pytest.approx(1 / OLD, abs=1e-6)


def test_thresholds_are_of_the_entropy_that_labels_are_held_against():
    pairs = [(torch.zeros(2, SIDE, SIDE, dtype=torch.int64), output(OLD, seed).logits / 2) for seed in range(4)]
    kept = {}
    for kind in ("mean", "sum"):
        thresholds, largest = plop.entropy_thresholds(pairs, OLD + NEW, 1000, 0.0, "true", kind)
        labels = [plop.pseudo_labels(*pair, thresholds, largest, OLD, kind)[0] for pair in pairs]
        kept[kind] = float((torch.stack(labels) != 255).float().mean())
    assert kept["mean"] == pytest.approx(0.5, abs=0.02)
    assert kept["sum"] == pytest.approx(0.5, abs=0.02)


def test_the_options_reach_the_thresholds():
    logits = [output(OLD, seed).logits for seed in range(4)]
    batches = [Batch(torch.zeros(2, 3), torch.zeros(2, SIDE, SIDE, dtype=torch.int64), ("a", "b"))] * len(logits)

    def thresholds(**options: Any) -> Tensor:
        coming = iter(logits)
        method = PLOP(PLOPOptions(**options))
        previous: Any = lambda images: dataclasses.replace(output(OLD, 0), logits=next(coming))  # noqa: E731
        method.before_training(context(previous=previous), batches)
        return method.state_dict()["thresholds"]

    released, true, total = thresholds(), thresholds(median="true"), thresholds(median="true", entropy="sum")
    assert (released[:OLD] == 0.001).sum() > OLD / 2
    assert (true[:OLD] > 0.001).all()
    assert (total[:OLD] > 2 * true[:OLD]).all()
    assert (thresholds(minimum=0.9) >= 0.9).all()
    assert not torch.equal(thresholds(median="true", bins=10), true)
