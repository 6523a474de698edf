"""Losses against slow, obvious loops written from the papers' equations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cispbench.harness import pixel_bands
from cispbench.methods import dkd, losses, lwf_mc, mbs, plop, ssul
from cispbench.splits.errors import MethodError


def scene(seed: int, classes: int, old: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 3, 4, generator=generator, dtype=torch.float64).float()
    old_logits = torch.randn(2, old, 3, 4, generator=generator)
    legal = torch.tensor([0, 255, *range(old, classes)])
    target = legal[torch.randint(len(legal), (2, 3, 4), generator=generator)]
    return logits, old_logits, target


sizes = st.tuples(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 3))


def pixels(logits, target):
    for b in range(target.shape[0]):
        for i in range(target.shape[1]):
            for j in range(target.shape[2]):
                yield logits[b, :, i, j].double().softmax(0), int(target[b, i, j]), (b, i, j)


LOSSES = {
    "cross_entropy": lambda logits, old, target: losses.cross_entropy(logits, target),
    "lwf_mc": lambda logits, old, target: lwf_mc.lwf_mc_loss(logits, target, old),
    "binary_distillation": lambda logits, old, target: lwf_mc.binary_distillation(logits, old),
    "dkd": lambda logits, old, target: dkd.classification(logits[:, old.shape[1] :], target, old.shape[1], 2.0, False),
    "dkd_distillation": lambda logits, old, target: dkd.distillation(logits[:, : old.shape[1]], old),
    "plop_labels": lambda logits, old, target: plop.pseudo_labels(target, old, torch.full((7,), 0.8), 1.9, 5)[0],
    "ssul_labels": lambda logits, old, target: ssul.pseudo_labels(target, old, 0.6),
    "unbiased_cross_entropy": lambda logits, old, target: losses.unbiased_cross_entropy(logits, target, old.shape[1]),
    "unbiased_distillation": lambda logits, old, target: losses.unbiased_distillation(logits, old, 0.7),
    "distillation": lambda logits, old, target: losses.distillation(logits, old, 0.7),
    "bce_with_ignore": lambda logits, old, target: losses.bce_with_ignore(logits, target),
    "label_guided": mbs.label_guided_output_distillation,
    "pseudo_labels": lambda logits, old, target: mbs.selective_pseudo_labels(target, old, 0.4),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_layout_in_memory_changes_no_loss_and_no_gradient(name):
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        logits, old_logits, target = scene(3, 7, 5)
        logits = logits.contiguous(memory_format=layout).requires_grad_()
        loss = LOSSES[name](logits, old_logits.contiguous(memory_format=layout), target)
        if loss.requires_grad:
            (loss * torch.linspace(1, 2, loss.numel()).view(loss.shape)).sum().backward()
        results.append((loss.detach(), logits.grad))
    (plain, its_gradient), (last, other_gradient) = results
    assert plain.shape == last.shape
    torch.testing.assert_close(last, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other_gradient, its_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_bands_of_pixels_change_no_loss_and_no_gradient(name, precision, monkeypatch):
    results = []
    for whole in (2**20, 0):
        monkeypatch.setitem(pixel_bands.WHOLE_BYTES, "cpu", whole)
        monkeypatch.setattr(
            pixel_bands, "BAND_BYTES", {"cpu": 5 * 7 * 4, "cuda": 0}
        )  # 5 pixels, which do not divide 24
        logits, old_logits, target = scene(3, 7, 5)
        logits = logits.to(precision).requires_grad_()
        loss = LOSSES[name](logits, old_logits.to(precision), target)
        if loss.requires_grad:
            (3 * loss).sum().backward()
        with torch.no_grad():
            again = LOSSES[name](logits, old_logits.to(precision), target)
        torch.testing.assert_close(again, loss.detach())
        results.append((loss.detach(), logits.grad))
    (plain, its_gradient), (banded, other_gradient) = results
    torch.testing.assert_close(banded, plain)
    torch.testing.assert_close(other_gradient, its_gradient)


@pytest.mark.parametrize("whole", [0, 2**30])
def test_what_gets_no_gradient_is_an_error_however_large_the_logits(whole, monkeypatch):
    monkeypatch.setitem(pixel_bands.WHOLE_BYTES, "cpu", whole)
    logits, old_logits, target = scene(3, 7, 5)
    with pytest.raises(MethodError, match="no gradient to anything but the logits"):
        losses.distillation(logits.requires_grad_(), old_logits.requires_grad_())
    with pytest.raises(ValueError, match="not of the same pixels"):
        losses.cross_entropy(logits, target[:, :2])


def test_what_a_cost_learns_besides_its_logits_is_an_error_in_bands():
    logits, _, target = scene(3, 7, 5)
    scale = torch.ones((), requires_grad=True)
    with pixel_bands.small_bands(), pytest.raises(MethodError, match="something else that is learnt"):
        pixel_bands.sum_over_pixels(lambda z, t: scale * z[:, 0], logits.requires_grad_(), target)


def test_second_derivatives_are_refused_in_bands():
    logits, _, target = scene(3, 7, 5)
    power = torch.ones((), requires_grad=True)
    with pixel_bands.small_bands():
        loss = losses.cross_entropy(logits * power**2, target)
    with pytest.raises(MethodError, match="only once"):
        torch.autograd.grad(loss, power, create_graph=True)


def test_a_loss_in_bands_can_be_differentiated_twice_over_its_graph(monkeypatch):
    monkeypatch.setitem(pixel_bands.WHOLE_BYTES, "cpu", 0)
    logits, _, target = scene(3, 7, 5)
    logits.requires_grad_()
    loss = losses.cross_entropy(logits, target)
    first, second = (torch.autograd.grad(weight * loss, logits, retain_graph=True)[0] for weight in (2.0, 4.0))
    assert torch.equal(2 * first, second)


@settings(max_examples=25, deadline=None)
@given(sizes)
def test_unbiased_cross_entropy_is_minus_log_of_summed_probability(size):
    seed, old, new = size
    logits, _, target = scene(seed, old + new, old)
    found = [
        -math.log(p[:old].sum() if label < old else p[label]) for p, label, _ in pixels(logits, target) if label != 255
    ]
    for void_in_mean, count in ((True, target.numel()), (False, max(len(found), 1))):
        ours = losses.unbiased_cross_entropy(logits, target, old, void_in_mean=void_in_mean)
        assert math.isclose(float(ours), sum(found) / count, rel_tol=1e-4, abs_tol=1e-5)


@settings(max_examples=25, deadline=None)
@given(sizes)
def test_unbiased_distillation_matches_background_with_background_and_new(size):
    seed, old, new = size
    logits, old_logits, target = scene(seed, old + new, old)
    total, count = 0.0, 0
    for p, _, (b, i, j) in pixels(logits, target):
        q = old_logits[b, :, i, j].double().softmax(0)
        total -= float(q[0] * torch.log(p[0] + p[old:].sum()) + (q[1:] * torch.log(p[1:old])).sum()) / old
        count += 1
    assert math.isclose(
        float(losses.unbiased_distillation(logits, old_logits)), total / count, rel_tol=1e-4, abs_tol=1e-6
    )


@settings(max_examples=25, deadline=None)
@given(sizes)
def test_label_guided_distillation_moves_the_background_to_the_new_class(size):
    seed, old, new = size
    logits, old_logits, target = scene(seed, old + new, old)
    total, count = 0.0, 0
    for p, label, (b, i, j) in pixels(logits, target):
        q = torch.zeros(old + new, dtype=torch.float64)
        q[:old] = old_logits[b, :, i, j].double().softmax(0)
        if old <= label < 255:
            q[label], q[0] = q[0].clone(), 0.0
        total -= float((q * p.log()).sum()) / (old + new)
        count += 1
    ours = mbs.label_guided_output_distillation(logits, old_logits, target)
    assert math.isclose(float(ours), total / count, rel_tol=1e-4, abs_tol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_true_median_of_the_histogram(values):
    bins = 10
    counts = [values.count(number) for number in range(bins)]
    ours = plop._true_median(counts)
    below = sum(counts[: int(ours * bins)])
    assert 0.0 <= ours <= 1.0
    assert below <= len(values) / 2 + 1e-9 <= sum(counts[: math.ceil(ours * bins - 1e-9) or 1]) + 1e-6


def test_thresholds_with_the_true_median_split_the_pixels_in_half():
    generator = torch.Generator().manual_seed(0)
    old_logits = 3 * torch.randn(4, 3, 40, 40, generator=generator)
    target = torch.zeros(4, 40, 40, dtype=torch.int64)
    thresholds, largest = plop.entropy_thresholds([(target, old_logits)], 5, median="true")
    filled, factor = plop.pseudo_labels(target, old_logits, thresholds, largest, 3)
    assert torch.isfinite(thresholds).all()
    assert 0.45 < float((filled != 255).float().mean()) < 0.55
    assert torch.allclose(factor, (filled != 255).flatten(1).float().mean(1), atol=1e-4)


def test_losses_of_void_only_targets_are_zero_and_differentiable():
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    void = torch.full((1, 3, 3), 255)
    for value in (
        losses.cross_entropy(logits, void),
        losses.unbiased_cross_entropy(logits, void, 2),
        losses.bce_with_ignore(logits, void),
    ):
        assert float(value.detach()) == 0.0
        (grad,) = torch.autograd.grad(value, logits, retain_graph=True)
        assert torch.equal(grad, torch.zeros_like(grad))


def test_patch_distillation_without_any_weight_is_zero():
    patches, old = torch.randn(1, 4, 3, requires_grad=True), torch.randn(1, 4, 3)
    assert float(mbs.adaptive_feature_distillation(patches, old, torch.zeros(1, 4)).detach()) == 0.0


@pytest.mark.parametrize("new", [range(3, 6), range(3, 4), range(0, 8, 3)])
def test_mbs_takes_a_range_of_classes_as_it_takes_their_list(new):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (2, 5, 4), generator=generator)
    labels[0, 0] = 255
    masks, tokens = torch.randn(2, 3, 5, 4, generator=generator), torch.randn(8, 6, generator=generator)
    assert torch.equal(mbs.patch_weights(masks, labels, new), mbs.patch_weights(masks, labels, list(new)))
    assert torch.equal(mbs.orthogonality(tokens, new, 0.5), mbs.orthogonality(tokens, list(new), 0.5))


@pytest.mark.parametrize("classes", [[3, 4, 5], [], [6, 0]])
def test_mbs_weighs_by_new_classes_old_ones_and_background(classes):
    labels = torch.tensor([[[0, 3, 4, 255, 6]]])
    masks = torch.zeros(1, 2, 1, 5)
    expected = [0.0 if l in classes or l == 255 else 0.5 if l == 0 else 1.0 for l in labels.flatten().tolist()]  # noqa: E741
    assert mbs.patch_weights(masks, labels, classes).flatten().tolist() == expected
