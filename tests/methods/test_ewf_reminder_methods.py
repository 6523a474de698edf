"""EWF and REMINDER as methods, on both families: what their switches change, parts of a batch, and state."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.method import Batch, StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.methods.ewf import EWF, EWFOptions, fuse, fusion_weight
from cispbench.methods.finetune import FineTune
from cispbench.methods.mib import MiB
from cispbench.methods.plop import PLOP
from cispbench.methods.reminder import REMINDER, REMINDEROptions, running_prototypes
from cispbench.splits.errors import MethodError
from cispbench.splits.settings import parse_setting

SETTING, SIDE, OLD, NEW = parse_setting("overlapped-15-5"), 32, 3, 2


def make_batch(images: int = 4) -> Batch:
    """Return images with background, both new classes (one of them in the first image alone) and void."""
    target = torch.zeros(images, SIDE, SIDE, dtype=torch.int64)
    target[:, :9], target[0, 20:], target[:, :, 30:] = OLD, OLD + 1, 255
    return Batch(torch.randn(images, 3, SIDE, SIDE), target, tuple(map(str, range(images))))


@pytest.fixture(params=["segmenter-tiny", "deeplabv3-tiny"])
def step(request: pytest.FixtureRequest) -> StepContext:
    """A step of 2 new classes after 3 old ones, at whose end both networks differ in every entry."""
    torch.manual_seed(0)
    model = build_model(request.param, SIDE)
    model.grow(OLD)
    previous = copy.deepcopy(model).eval().requires_grad_(False)
    model.grow(NEW)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
            else:
                value.add_(7)
    batches = [make_batch(), make_batch()]
    services = SimpleNamespace(batches=lambda view, size, ids: iter(batches), batch_sum=lambda tensor: tensor)
    return StepContext(SETTING, 1, OLD, NEW, model.eval(), previous, services=services)  # type: ignore[arg-type]


def values(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def fused(step: StepContext, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return the previous network, and the present one before and after EWF's fusion."""
    before = values(step.model)
    with torch.no_grad():
        EWF(EWFOptions(**options), MiB()).after_training(step)
    assert step.previous is not None
    return values(step.previous), before, values(step.model)


def test_every_entry_of_the_previous_network_is_fused(step: StepContext) -> None:
    old, new, after = fused(step)
    share = (NEW / (OLD + NEW)) ** 0.5
    assert set(new) > set(old)
    for name, value in after.items():
        if name in old and value.is_floating_point():
            torch.testing.assert_close(value, (1 - share) * old[name] + share * new[name])
            assert not torch.equal(value, new[name])
        else:
            assert torch.equal(value, new[name])


def test_the_background_bias_may_stay(step: StepContext) -> None:
    untouched = copy.deepcopy(step.model)
    released = fused(step)[-1]
    _, new, kept = fused(dataclasses.replace(step, model=untouched), fuse_background_bias=False)
    bias = next(name for name, value in step.model.named_parameters() if value is step.model.class_groups()[0].bias)
    assert kept[bias][0] == new[bias][0] != released[bias][0]
    kept[bias][0] = released[bias][0]
    assert all(torch.equal(kept[name], released[name]) for name in released)


def test_what_moved_little_may_stay(step: StepContext) -> None:
    old, new, after = fused(step, threshold_choice=True, moved_share=0.25)
    expected = fuse(old, new, fusion_weight(OLD, NEW), moved_share=0.25)
    assert all(torch.equal(after[name], expected[name]) for name in after)
    shared = [name for name in old if old[name].is_floating_point()]
    still = sum(int((after[name] == new[name]).sum()) for name in shared)
    assert still / sum(old[name].numel() for name in shared) == pytest.approx(0.75, abs=0.01)


def test_ewf_leaves_step_0_and_early_phases_alone(step: StepContext) -> None:
    class TwoPhases(MiB):
        def phases(self, setting: Any, step: int) -> tuple[str, ...]:
            return ("warm", "train")

    method, before = EWF(EWFOptions(), TwoPhases()), values(step.model)
    for context in (dataclasses.replace(step, previous=None), dataclasses.replace(step, phase="warm")):
        method.after_training(context)
        assert all(torch.equal(value, before[name]) for name, value in values(step.model).items())
    with torch.no_grad():
        method.after_training(step)
    assert not all(torch.equal(value, before[name]) for name, value in values(step.model).items())


def test_ewf_calls_its_base_first(step: StepContext) -> None:
    class Zeros(FineTune):
        def after_training(self, context: StepContext) -> None:
            for value in context.model.parameters():
                value.zero_()

    assert step.previous is not None
    with torch.no_grad():
        EWF(EWFOptions(), Zeros()).after_training(step)
    share, old = fusion_weight(OLD, NEW), dict(step.previous.named_parameters())
    for name, value in step.model.named_parameters():
        torch.testing.assert_close(value.detach(), (1 - share) * old.get(name, torch.zeros_like(value)))


def reminder(**options: Any) -> REMINDER:
    """Return REMINDER in a later step, with prototypes of the old classes."""
    method = REMINDER(REMINDEROptions(scales=(1, 2), **options))
    method.thresholds = torch.full((OLD + NEW,), 0.5)
    method.prototypes = torch.linspace(-1, 1, OLD)[:, None] * torch.linspace(-1, 2, 64)
    return method


def terms(method: PLOP, step: StepContext, batch: Batch) -> dict[str, Tensor]:
    assert step.previous is not None
    if isinstance(method, REMINDER) and method.prototypes is not None:
        method.prototypes = method.prototypes[:, : step.model(batch.images).stages[-1].shape[1]]
    with torch.no_grad():
        previous = step.previous(*batch.inputs)
    return method.losses(batch, step.model(*batch.inputs), previous, step)


def test_reminder_is_plop_and_class_similarity(step: StepContext) -> None:
    batch, method = make_batch(), reminder()
    plop = PLOP(PLOP.Options(scales=(1, 2)))
    plop.thresholds = method.thresholds
    ours, theirs = terms(method, step, batch), terms(plop, step, batch)
    assert set(ours) == {*theirs, "class_similarity"}
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    half = terms(reminder(class_similarity=0.25), step, batch)["class_similarity"]
    torch.testing.assert_close(2 * half, ours["class_similarity"])
    hotter = terms(reminder(temperature=1.0), step, batch)["class_similarity"]
    fewer = terms(reminder(delta=1.0), step, batch)["class_similarity"]
    assert fewer < ours["class_similarity"] != hotter
    assert terms(reminder(delta=100.0), step, batch)["class_similarity"] < 1e-3 * ours["class_similarity"]


def test_only_logits_learn_from_class_similarity(step: StepContext) -> None:
    batch, method = make_batch(), reminder()
    output = step.model(*batch.inputs)
    assert step.previous is not None and method.prototypes is not None
    method.prototypes = method.prototypes[:, : output.stages[-1].shape[1]]
    maps = output.stages[-1].detach().requires_grad_()
    output = dataclasses.replace(output, stages=(*output.stages[:-1], maps), logits=output.logits.detach())
    output.logits.requires_grad_()
    found = method.losses(batch, output, step.previous(*batch.inputs), step)["class_similarity"]
    grads = torch.autograd.grad(found, [output.logits, maps], allow_unused=True)
    assert grads[0] is not None and grads[0][:, :OLD].any() and not grads[0][:, OLD:].any()
    assert grads[1] is None


def test_two_devices_see_the_whole_batchs_prototypes(step: StepContext) -> None:
    """The counts put the parts' terms together to that of the whole batch, with every device's sums."""
    batch, method = make_batch(), reminder()
    whole = terms(method, step, batch)["class_similarity"]
    halves = [batch.part(slice(0, 2)), batch.part(slice(2, 4))]
    seen: list[list[Tensor]] = []
    for half in halves:  # what each device would send
        sent: list[Tensor] = []
        services = SimpleNamespace(batch_sum=lambda tensor, sent=sent: sent.append(tensor) or tensor)
        terms(method, dataclasses.replace(step, services=services), half)  # type: ignore[arg-type]
        seen.append(sent)
    total, weight = torch.zeros(()), 0
    for half in halves:
        sums: Iterator[Tensor] = iter([a + b for a, b in zip(*seen, strict=True)])
        services = SimpleNamespace(batch_sum=lambda tensor, sums=sums: next(sums))
        context = dataclasses.replace(step, services=services)  # type: ignore[arg-type]
        found = terms(method, context, half)["class_similarity"]
        assert step.previous is not None
        count = int(method.counts(half, step.previous(*half.inputs), context)["class_similarity"])
        total, weight = total + count * found, weight + count
    torch.testing.assert_close(total / weight, whole)
    assert not method.micro_batches and method.devices


def test_prototypes_are_measured_after_training_and_kept(step: StepContext) -> None:
    method = reminder()
    terms(method, step, make_batch())
    old = method.prototypes
    assert old is not None
    batches = [(step.model(*batch.inputs).stages[-1].detach(), batch.target) for batch in step.batches()]
    with torch.no_grad():
        method.after_training(step)
    assert method.prototypes is not None and method.prototypes.shape == (OLD + NEW, old.shape[1])
    assert torch.equal(method.prototypes[:OLD], old)
    torch.testing.assert_close(method.prototypes, running_prototypes(batches, old, OLD + NEW))
    other = REMINDER()
    other.load_state_dict(dict(reversed(method.state_dict().items())))
    assert torch.equal(other.prototypes, method.prototypes) and torch.equal(other.thresholds, method.thresholds)


def test_step_0_leaves_prototypes_of_all_its_classes(step: StepContext) -> None:
    method = REMINDER()
    context = dataclasses.replace(step, step=0, old_classes=0, new_classes=OLD + NEW, previous=None)
    with torch.no_grad():
        method.after_training(context)
    found = method.state_dict()
    assert set(found) == {"prototypes"}
    assert found["prototypes"].any(1).tolist() == [True, False, False, True, True]  # the batches show no other


def test_a_step_without_prototypes_is_refused(step: StepContext) -> None:
    batch = make_batch()
    for prototypes in (None, torch.zeros(OLD + 1, 8)):
        method = reminder()
        method.prototypes = prototypes
        with pytest.raises(MethodError, match="no prototypes of the 3 classes before step 1"):
            terms(method, step, batch)
