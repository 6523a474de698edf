"""Rules about the loss: what ``losses`` returns, on which batches, in which precision, and what it must not change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from cispbench.harness.contract.bench import SEED, Bench
from cispbench.harness.contract.diagnosis import call_violations, failure_violation, rule_of_failure
from cispbench.harness.contract.probe import first_batch, freeze_mode, last_step, own_steps, phases_in, train_again
from cispbench.harness.contract.recorded import copy_batch, differing_terms, listed
from cispbench.harness.contract.rules import rule
from cispbench.harness.contract.verdict import NotApplicable, Unchecked, Violation
from cispbench.harness.method import VOID, Batch, StepContext

PARTS_TOLERANCE = 1e-4  # relative, of sums in another order
BF16_SHARE, BF16_LEAST = 0.1, 0.05  # how far a loss under bf16 may be from that in float32: relative, or absolute


@rule
def losses_finite(bench: Bench) -> Iterator[Violation | str]:
    """Every term of the loss has a name and is a finite scalar; the model's parameters get finite gradients."""
    training = bench.main
    violations = [violation for call, place in training.calls() for violation in call_violations(call, place)]
    yield from violations
    if not violations:
        if rule_of_failure(training) == "losses-finite":
            yield failure_violation(training)
        bench.require_finished()


@rule
def hands_off(bench: Bench) -> Iterator[Violation | str]:
    """`losses` only computes: it changes no parameter, leaves no gradient, does not switch the training mode, and
    keeps nothing unless `micro_batches` is False.
    """
    training = bench.main
    for call, place in training.calls():
        changed = tuple(name for name in call.changed if name.startswith("model."))
        if changed:
            yield Violation(
                f"losses changed {listed(changed)}",
                place,
                "Return a loss and leave the model to the harness: call torch.autograd.grad instead of backward(), "
                "set parameters in `initialise` alone, and do not call train() or eval().",
            )
        kept = tuple(name for name in call.changed if name.startswith("state."))
        if kept and bench.method.micro_batches:
            advice = "Change it in `after_gradients`, or say micro_batches = False: losses may see a part of a batch."
            yield Violation(f"losses changed {listed(kept)}", place, advice)
    bench.require_finished()


@rule
def odd_batches(bench: Bench) -> Iterator[Violation | str]:
    """A batch of void alone, of background alone, of one image, or full of one new class has a finite loss, and so
    has one of exemplars alone, or without any.
    """
    for step, phase in phases_in(bench, own_steps(bench)):
        batches = _odd_batches(first_batch(bench, step, phase), bench.finished.steps[step].context)
        if not _takes_one_image(bench, step):
            del batches["of one image"]
            yield "its norms take no batch of one image"
        training = train_again(bench, step, list(batches.values()), phase=phase)
        for kind, (call, place) in zip(batches, training.calls(), strict=False):
            yield from call_violations(call, place, f" for a batch {kind}")
        done = len(training.steps[-1].calls) if training.steps else 0
        if training.failure is not None and done < len(batches):
            found = f"for a batch {list(batches)[done]} {training.failure}"
            yield Violation(found, training.location, "Such batches occur; support them.")


def _odd_batches(batch: Batch, context: StepContext) -> dict[str, Batch]:
    def filled(label: int) -> Batch:
        return replace(batch, target=torch.full_like(batch.target, label))

    batches = {
        "of void alone": filled(VOID),
        "of background alone": filled(0),
        "of one image": batch.part(slice(1)),
        "full of one new class": filled(context.num_classes - 1),
    }
    if batch.origin is not None and context.step > 0:
        batches["of exemplars alone"] = replace(batch, origin=torch.zeros_like(batch.origin))
        batches["without exemplars"] = replace(batch, origin=torch.full_like(batch.origin, context.step))
    return batches


def _takes_one_image(bench: Bench, step: int) -> bool:
    """Whether the model itself can be trained on one image: a batch norm over pooled features cannot."""
    model = bench.finished.steps[step].context.model
    one = first_batch(bench, step).part(slice(1))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        with torch.no_grad():
            model.train()(*one.inputs)
    except ValueError:
        return False
    finally:
        # A forward pass in training mode changes the statistics of batch norms.
        model.load_state_dict(state)
    return True


@rule
def precisions(bench: Bench) -> Iterator[Violation | str]:
    """Under bf16 autocast the loss is finite and within 10 % (or 0.05) of what it is in float32."""
    for step, phase in phases_in(bench, own_steps(bench)):
        again = partial(train_again, bench, step, [first_batch(bench, step, phase)], phase=phase)
        # The first loss of the main training is this one; a later phase has begun with other weights there.
        seen = bench.finished.steps[step]
        exact = seen.calls[0] if phase == seen.phases[0] else next(again().calls())[0]
        training = again(precision="bf16")
        calls = list(training.calls())
        violations = [v for call, place in calls for v in call_violations(call, place, " under bf16 autocast")]
        yield from violations
        if violations:
            continue
        if training.failure is not None:
            advice = "Convert what autocast gives to float32 first: output.logits.float()."
            yield Violation(f"under bf16 autocast {training.failure}", training.location, advice)
            continue
        a, b = (sum(call.values.values()) for call in (exact, calls[0][0]))
        if abs(a - b) > max(BF16_SHARE * abs(a), BF16_LEAST):
            yield Violation(
                f"the loss is {b:.4g} under bf16 autocast and {a:.4g} in float32",
                calls[0][1],
                "Compute in float32 what is sensitive: softmax, logarithms, long sums (tensor.float()).",
            )


@rule
def halves_add_up(bench: Bench) -> Iterator[Violation | str]:
    """The terms of a batch are the weighted means of the terms of its two halves; `counts` gives the weights.

    The training uses the same means for micro-batches and on several devices. A term that `counts` does not name is
    weighted by the number of images.
    """
    if not bench.method.micro_batches:
        raise NotApplicable("its terms need the whole batch (micro_batches = False)")
    training = bench.finished
    if bench.difference(interrupt=True) is not None:
        raise Unchecked("not judged: what the method keeps beside its state may differ between the halves")
    if any(name.startswith("state.") for call, _ in training.calls() for name in call.changed):
        raise NotApplicable("its state changes in `losses`, and the training refuses to divide batches then")
    for number, phase in phases_in(bench, dict.fromkeys((0, last_step(bench)))):
        seen = training.steps[number]
        # Mostly void in its first half, so that a mean over labelled pixels is not one over images.
        batch = copy_batch(seen.batches_of(phase)[-1])
        size = len(batch.ids)
        batch.target[: size // 2, : 3 * batch.target.shape[1] // 4] = VOID
        again = partial(train_again, bench, number, [batch], phase=phase, from_end=True, prepare=freeze_mode)
        whole, halves = again(), again(micro_batch=size // 2)
        if halves.failure is not None:
            advice = "Support batches of any number of images, with any share of void."
            yield Violation(f"with a batch in two halves {halves.failure}", halves.location, advice)
            return
        # Before the terms are compared: random losses can agree within the tolerance by luck.
        if again(seed=SEED + 1).logged != whole.logged:
            raise NotApplicable("its losses are drawn at random")
        for name, found in differing_terms(whole.logged, halves.logged, PARTS_TOLERANCE):
            yield Violation(
                f"{found} when put together from halves of a batch",
                training.at(seen, term=name),
                f"Let `counts` return, as {name!r}, how many things it is a mean over (labelled pixels?).",
            )
