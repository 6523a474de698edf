"""LwF, LwF-MC and ILT: their functions against slow loops, their terms and every option."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cispbench.harness.method import Batch, StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.training.shared_base import SharedBase
from cispbench.methods import ilt, losses, lwf, lwf_mc
from cispbench.splits.settings import parse_setting

VOID = 255
SETTING = parse_setting("overlapped-15-5")
BASELINES = {"lwf": lwf.LwF, "lwf_mc": lwf_mc.LwFMC, "ilt": ilt.ILT}
sizes = st.tuples(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 3))


def scene(seed: int, classes: int, old: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, 3, 4, generator=generator)
    old_logits = 3 * torch.randn(2, old, 3, 4, generator=generator)
    legal = torch.tensor([0, VOID, *range(old, classes)])
    return logits, old_logits, legal[torch.randint(len(legal), (2, 3, 4), generator=generator)]


def places(target):
    return [(b, i, j) for b in range(target.shape[0]) for i in range(target.shape[1]) for j in range(target.shape[2])]


def sigmoid(score) -> float:
    return 1 / (1 + math.exp(-float(score)))


def binary(score, target: float) -> float:
    """One binary cross-entropy, by its definition."""
    return -(target * math.log(sigmoid(score)) + (1 - target) * math.log(1 - sigmoid(score)))


def mean_over_pixels(costs: list[tuple[float, bool]], void_in_mean: bool) -> float:
    """The mean of (cost, void?) where void pixels cost 0, counted or not."""
    counted = len(costs) if void_in_mean else max(1, sum(not void for _, void in costs))
    return sum(cost for cost, void in costs if not void) / counted


def near(ours: torch.Tensor, expected: torch.Tensor | float) -> bool:
    return math.isclose(ours.item(), torch.as_tensor(expected).item(), rel_tol=1e-4, abs_tol=1e-5)


@pytest.mark.golden
def test_lwf_mc_loss_as_recorded(golden):
    d = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(golden / "lwf_mc.npz").items()}
    logits = d["logits"].clone().requires_grad_()
    value = lwf_mc.lwf_mc_loss(logits, d["target"].long(), d["old_logits"])
    value.backward()
    torch.testing.assert_close(value.detach(), d["mean"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.grad, d["grad"], rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(sizes, st.booleans())
def test_cross_entropies_with_and_without_void_in_the_mean(size, void_in_mean):
    seed, old, new = size
    logits, _, target = scene(seed, old + new, old)
    plain, binaries = [], []
    for b, i, j in places(target):
        label, z = int(target[b, i, j]), logits[b, :, i, j].double()
        void = label == VOID
        plain.append((0.0 if void else -math.log(z.softmax(0)[label]), void))
        binaries.append((sum(binary(score, float(c == label)) for c, score in enumerate(z)), void))
    assert near(losses.cross_entropy(logits, target, void_in_mean), mean_over_pixels(plain, void_in_mean))
    assert near(losses.bce_with_ignore(logits, target, void_in_mean), mean_over_pixels(binaries, void_in_mean))


@settings(max_examples=20, deadline=None)
@given(sizes, st.booleans())
def test_lwf_mc_loss_takes_old_targets_from_the_old_model_and_new_ones_from_labels(size, void_in_mean):
    seed, old, new = size
    logits, old_logits, target = scene(seed, old + new, old)
    costs = []
    for b, i, j in places(target):
        label = int(target[b, i, j])
        cost = sum(binary(logits[b, c, i, j], sigmoid(old_logits[b, c, i, j])) for c in range(old))
        cost += sum(binary(logits[b, c, i, j], float(c == label)) for c in range(old, old + new))
        costs.append((cost, label == VOID and not void_in_mean))
    assert near(lwf_mc.lwf_mc_loss(logits, target, old_logits, void_in_mean), mean_over_pixels(costs, False))


@settings(max_examples=20, deadline=None)
@given(sizes)
def test_binary_distillation_is_old_classes_times_the_mean_over_all_entries(size):
    seed, old, new = size
    logits, old_logits, target = scene(seed, old + new, old)
    entries = [
        binary(logits[b, c, i, j], sigmoid(old_logits[b, c, i, j])) for b, i, j in places(target) for c in range(old)
    ]
    assert near(lwf_mc.binary_distillation(logits, old_logits), old * sum(entries) / len(entries))


def test_encoder_distillation_is_the_mean_squared_difference():
    new, old = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    squares = [(a - b) ** 2 for a, b in zip(new.flatten().tolist(), old.flatten().tolist(), strict=True)]
    assert near(ilt.encoder_distillation(new, old), sum(squares) / len(squares))
    assert near(ilt.encoder_distillation(new.bfloat16(), new.bfloat16()), 0.0)


@pytest.mark.parametrize("scale", [30.0, 200.0])
def test_binary_losses_of_very_sure_logits_agree_with_torch(scale):
    logits, old_logits, target = (scale * x if x.is_floating_point() else x for x in scene(0, 6, 4))
    logits.requires_grad_()
    one_hot = torch.nn.functional.one_hot(target.masked_fill(target == VOID, 0), 6).movedim(-1, 1).float()
    one_hot[(target == VOID).unsqueeze(1).expand_as(one_hot)] = 0
    one_hot[:, :4] = old_logits.sigmoid()
    reference = torch.nn.functional.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").sum(1).mean()
    ours = lwf_mc.lwf_mc_loss(logits, target, old_logits)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(value, logits)[0] for value in (ours, reference)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


@pytest.fixture(params=["segmenter-tiny", "deeplabv3-tiny"])
def step(request) -> tuple[StepContext, Batch]:
    """A step of 2 new classes after 3 old ones, with a quarter of the pixels void."""
    torch.manual_seed(0)
    model, previous = build_model(request.param, 24), build_model(request.param, 24)
    for network in (model, previous):
        network.grow(3)
    model.grow(2)
    previous.eval().requires_grad_(False)
    target = torch.tensor([0, 3, 4, VOID])[torch.randint(4, (2, 24, 24))]
    batch = Batch(torch.randn(2, 3, 24, 24), target, ("a", "b"))
    return StepContext(SETTING, 1, 3, 2, model, previous), batch


def terms_of(method, step, **changes):
    """The method's terms with options changed, and the outputs of both models."""
    context, batch = step
    with torch.no_grad():
        previous = context.previous(batch.images)
    output = context.model.eval()(batch.images)
    return method(method.Options(**changes)).losses(batch, output, previous, context), output, previous


def test_lwf_is_cross_entropy_and_weighted_distillation(step):
    target, found = step[1].target, terms_of(lwf.LwF, step)
    terms, output, previous = found
    assert set(terms) == {"cross_entropy", "distillation"}
    soft = previous.logits.double().softmax(1)
    kept = -(soft * output.logits.double()[:, :3].log_softmax(1)).mean()
    assert near(terms["distillation"], 100 * kept)
    per_pixel = torch.nn.functional.cross_entropy(output.logits, target, ignore_index=VOID, reduction="none")
    assert near(terms["cross_entropy"], per_pixel.mean())
    without = terms_of(lwf.LwF, step, void_in_mean=False)[0]
    assert near(without["cross_entropy"], per_pixel.sum() / (target != VOID).sum())
    assert without["cross_entropy"].item() > 1.1 * terms["cross_entropy"].item()
    hard = (4 * previous.logits.double()).softmax(1)
    sharpened = terms_of(lwf.LwF, step, alpha=4.0, distillation=1.0)[0]["distillation"]
    assert near(sharpened, -(hard * output.logits.double()[:, :3].log_softmax(1)).mean())


def test_ilt_is_lwf_and_the_encoders_map(step):
    terms, output, previous = terms_of(ilt.ILT, step)
    of_lwf = terms_of(lwf.LwF, step)[0]
    assert set(terms) == {*of_lwf, "encoder_distillation"}
    assert all(torch.equal(terms[name], of_lwf[name]) for name in of_lwf)
    difference = (output.encoded - previous.encoded).square().mean()
    assert difference.item() > 0
    assert near(terms["encoder_distillation"], 100 * difference)
    assert near(terms_of(ilt.ILT, step, encoder_distillation=2.0)[0]["encoder_distillation"], 2 * difference)


def test_lwf_mc_in_both_forms(step):
    target, (combined, output, previous) = step[1].target, terms_of(lwf_mc.LwFMC, step)
    entries = torch.nn.functional.binary_cross_entropy_with_logits(output.logits[:, :3], previous.logits.sigmoid())
    assert near(combined["distillation"], 10 * 3 * entries)
    taught = losses.bce_with_ignore(output.logits, target)  # the mean over non-void pixels
    share = (target != VOID).float().mean()
    assert near(combined["binary_cross_entropy"], share * taught)
    without = terms_of(lwf_mc.LwFMC, step, void_in_mean=False)[0]
    assert near(without["binary_cross_entropy"], taught)
    disjoint = terms_of(lwf_mc.LwFMC, step, form="disjoint")[0]
    assert set(disjoint) == {"binary_cross_entropy"}
    assert near(disjoint["binary_cross_entropy"], lwf_mc.lwf_mc_loss(output.logits, target, previous.logits))
    assert not near(disjoint["binary_cross_entropy"], sum(combined.values()))
    no_void = terms_of(lwf_mc.LwFMC, step, form="disjoint", void_in_mean=False)[0]["binary_cross_entropy"]
    assert near(no_void, lwf_mc.lwf_mc_loss(output.logits, target, previous.logits, void_in_mean=False))
    assert not near(no_void, disjoint["binary_cross_entropy"])


@pytest.mark.parametrize("name", BASELINES)
def test_distillations_pull_the_new_model_toward_the_old_one(step, name):
    terms, output, previous = terms_of(BASELINES[name], step)
    z, old, pixels = output.logits.detach()[:, :3], previous.logits, step[1].target.numel()
    pull = 100 * (z.softmax(1) - old.softmax(1)) / 3 if name != "lwf_mc" else 10 * (z.sigmoid() - old.sigmoid())
    (grad,) = torch.autograd.grad(terms["distillation"], output.logits, retain_graph=True)
    torch.testing.assert_close(grad[:, :3], pull / pixels, rtol=1e-4, atol=1e-7)
    assert torch.equal(grad[:, 3:], torch.zeros_like(grad[:, 3:]))
    if name == "ilt":
        (grad,) = torch.autograd.grad(terms["encoder_distillation"], output.encoded)
        difference = output.encoded.detach() - previous.encoded
        torch.testing.assert_close(grad, 100 * 2 * difference / difference.numel(), rtol=1e-4, atol=1e-7)


def test_step_0_is_plain_where_the_base_is_shared(step):
    context, batch = step
    output = context.model.eval()(batch.images)
    assert {name for name, cls in BASELINES.items() if not cls.shared_base} == {"lwf_mc"}
    expected = {"cross_entropy": losses.cross_entropy(output.logits, batch.target)}
    assert SharedBase().losses(batch, output, None, context) == expected
    expected = {"binary_cross_entropy": losses.bce_with_ignore(output.logits, batch.target, void_in_mean=True)}
    for changes in ({}, {"form": "disjoint"}):
        options = lwf_mc.LwFMCOptions(**changes)
        assert lwf_mc.LwFMC(options).losses(batch, output, None, context) == expected


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("void_in_mean", [True, False])
def test_labels_teach_nothing_where_all_is_void(step, name, void_in_mean):
    context, batch = step
    void = Batch(batch.images, torch.full_like(batch.target, VOID), batch.ids)
    terms, output, _ = terms_of(BASELINES[name], (context, void), void_in_mean=void_in_mean)
    assert all(math.isfinite(term.item()) for term in terms.values())
    taught = terms["binary_cross_entropy" if name == "lwf_mc" else "cross_entropy"]
    (grad,) = torch.autograd.grad(taught, output.logits)
    assert taught.item() == 0.0
    assert torch.equal(grad, torch.zeros_like(grad))


def test_the_disjoint_form_distils_void_pixels_only_as_released(step):
    context, batch = step
    void = Batch(batch.images, torch.full_like(batch.target, VOID), batch.ids)
    for kept in (True, False):
        terms, output, previous = terms_of(lwf_mc.LwFMC, (context, void), form="disjoint", void_in_mean=kept)
        (grad,) = torch.autograd.grad(terms["binary_cross_entropy"], output.logits)
        pixels = void.target.numel()
        toward = output.logits.detach().sigmoid()
        toward[:, :3] -= previous.logits.sigmoid()
        torch.testing.assert_close(grad, kept * toward / pixels, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in BASELINES), ("lwf_mc", {"form": "disjoint"})], ids=str
)
def test_only_the_new_model_learns(step, name, changes):
    context, _ = step
    before = {key: value.clone() for key, value in context.previous.state_dict().items()}
    terms, _, previous = terms_of(BASELINES[name], step, **changes)
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad is None for parameter in context.previous.parameters())
    assert not previous.logits.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in context.previous.state_dict().items())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in context.model.parameters())
