"""Rules about the loss: what ``losses`` returns, on which batches, in which precision, and what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cispbench.harness.contract.bench import Bench
from cispbench.harness.contract.probe import Probe, first_batch, own_steps, train, values
from cispbench.harness.contract.rules import rule
from cispbench.harness.contract.trace import LossCall, Trace, listed
from cispbench.harness.contract.verdict import Finding, NotApplicable
from cispbench.harness.method import VOID, Batch
from cispbench.harness.models.interface import IncrementalModel
from cispbench.splits.errors import MethodError

HALVES_TOLERANCE = 1e-4  # relative, of sums taken in another order
PLAIN_TOLERANCE = 1e-5  # relative, of a loss that has to be plain cross-entropy
BF16_SHARE, BF16_LEAST = 0.1, 0.05  # how far a loss under bf16 may be from that in float32: relative, or absolute

Fault = tuple[str | None, str, str]  # term, what was found, what to do


@rule
def losses_finite(bench: Bench) -> Iterator[Finding | str]:
    """Every term of the loss has a name and is a finite scalar; the model's parameters get finite gradients."""
    trace, faults = bench.main, 0
    for step, iteration, call in trace.calls():
        for term, found, advice in faults_of(call):
            faults += 1
            yield Finding(found, trace.place(step, iteration, term), advice)
    if trace.stop is not None and not faults and stopped_by(trace) == "losses-finite":
        yield stopped(trace)


@rule
def hands_off(bench: Bench) -> Iterator[Finding | str]:
    """`losses` only computes: it changes no parameter, leaves no gradient and does not switch the training mode."""
    trace = bench.main
    for step, iteration, call in trace.calls():
        place = trace.place(step, iteration)
        changed = tuple(name for name in call.changed if name.startswith("model."))
        if changed:
            advice = "Return a loss and leave the parameters to the optimiser, or set them in `initialise`."
            yield Finding(f"losses changed {listed(changed)}", place, advice)
        if call.left_gradients:
            advice = "Do not call backward(); the harness does. torch.autograd.grad leaves no gradients behind."
            yield Finding(f"losses left gradients in {listed(call.left_gradients)}", place, advice)
        if call.switched_mode:
            yield Finding("losses switched the model's training mode", place, "Leave train() and eval() alone.")
    bench.needs_end()


@rule
def odd_batches(bench: Bench) -> Iterator[Finding | str]:
    """A batch of void alone, of background alone, of one image, or full of one new class has a finite loss."""
    for step in own_steps(bench):
        batches = _odd_batches(first_batch(bench, step), bench.finished.steps[step].initial_classes - 1)
        if not _takes_one_image(bench, step):
            del batches["of one image"]
            yield "its norms take no batch of one image"
        trace = train(bench, step, Probe(list(batches.values())))
        for (kind, _), (seen, iteration, call) in zip(batches.items(), trace.calls(), strict=False):
            for term, found, advice in faults_of(call):
                where = trace.place(seen, iteration, term)
                yield Finding(f"{found} for a batch {kind}", where, f"{advice} Mind means over no pixels.")
        done = len(trace.steps[-1].calls) if trace.steps else 0
        if trace.stop is not None and done < len(batches):
            kind = list(batches)[done]
            yield Finding(f"for a batch {kind} {trace.stop}", trace.stands(), "Such batches occur; serve them.")


def _odd_batches(batch: Batch, new_class: int) -> dict[str, Batch]:
    def filled(label: int) -> Batch:
        return Batch(batch.images, torch.full_like(batch.target, label), batch.ids)

    one = Batch(batch.images[:1], batch.target[:1], batch.ids[:1])
    return {
        "of void alone": filled(VOID),
        "of background alone": filled(0),
        "of one image": one,
        "full of one new class": filled(new_class),
    }


def _takes_one_image(bench: Bench, step: int) -> bool:
    """Whether the model itself can be trained on one image: a batch norm over pooled features cannot."""
    model: IncrementalModel = bench.finished.steps[step].start
    images = first_batch(bench, step).images[:1]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        with torch.no_grad():
            model.train()(images)
    except ValueError:
        return False
    finally:
        model.load_state_dict(state)
    return True


@rule
def precisions(bench: Bench) -> Iterator[Finding | str]:
    """Under bf16 autocast the loss is finite and within 10 % (or 0.05) of what it is in float32."""
    for step in own_steps(bench):
        exact = bench.finished.steps[step].calls[0]
        trace, faults = train(bench, step, Probe([exact.batch], precision="bf16")), 0
        for seen, iteration, call in trace.calls():
            for term, found, advice in faults_of(call):
                faults += 1
                yield Finding(f"{found} under bf16 autocast", trace.place(seen, iteration, term), advice)
        if trace.stop is not None and not faults:
            advice = "Bring what autocast gives to float32 first: output.logits.float()."
            yield Finding(f"under bf16 autocast {trace.stop}", trace.stands(), advice)
        elif not faults:
            a, b = (sum(values(call).values()) for call in (exact, trace.steps[0].calls[0]))
            if abs(a - b) > max(BF16_SHARE * abs(a), BF16_LEAST):
                yield Finding(
                    f"the loss is {b:.4g} under bf16 autocast and {a:.4g} in float32",
                    trace.place(trace.steps[0], 0),
                    "Compute in float32 what is sensitive: softmax, logarithms, long sums (tensor.float()).",
                )


@rule
def shared_base(bench: Bench) -> Iterator[Finding | str]:
    """With `shared_base` step 0 is plain cross-entropy (mean over non-void pixels) and leaves no state behind."""
    if not bench.cls.shared_base:
        raise NotApplicable("the method has a base of its own (shared_base = False)")
    trace, advice = bench.main, "Keep step 0 plain, or set shared_base = False in the class."
    for step, iteration, call in trace.calls():
        if step.step == 0 and not list(faults_of(call)):
            total = sum(values(call).values())
            if not math.isclose(total, call.plain, rel_tol=PLAIN_TOLERANCE, abs_tol=PLAIN_TOLERANCE):
                found = f"the loss of step 0 is {total:.6g}, plain cross-entropy is {call.plain:.6g}"
                yield Finding(found, trace.place(step, iteration), advice)
                break
    if trace.steps and trace.steps[0].kept_after:
        yield Finding(f"step 0 keeps {listed(tuple(trace.steps[0].kept_after))}", trace.place(trace.steps[0]), advice)
    if len(trace.steps) <= 1:
        bench.needs_end()  # a training that did not get past step 0 proves nothing


@rule
def halves_add_up(bench: Bench) -> Iterator[Finding | str]:
    """The terms of a batch are those of its halves put together, each weighted by what `counts` returns for it.

    That is how several devices share a batch. What `counts` does not name is weighted by the number of images.
    """
    trace = bench.finished
    for step, iteration, call in trace.calls():
        halved = call.halved
        if halved is None:
            continue
        if isinstance(halved, str):
            yield Finding(halved, trace.place(step, iteration), "Serve batches of any number of images, and any void.")
            return
        if halved.redrawn != halved.whole:
            raise NotApplicable("its losses are drawn at random")
        for name, whole in halved.whole.items():
            found = halved.combined.get(name, math.nan)
            if not math.isclose(found, whole, rel_tol=HALVES_TOLERANCE, abs_tol=1e-6):
                yield Finding(
                    f"the term {name} is {whole:.6g} for a batch, and {found:.6g} put together from its halves",
                    trace.place(step, iteration, name),
                    f"Let `counts` return, as {name!r}, over how many things it is a mean (labelled pixels?).",
                )


def stopped_by(trace: Trace) -> str:
    """Return the rule that the end of a broken training speaks against."""
    assert trace.stop is not None
    step = trace.steps[-1] if trace.steps else None
    if step is not None and step.kept_error is not None:
        return "state-exact"
    if step is not None and step.step == 0 and step.kept_after and isinstance(trace.stop.error, MethodError):
        return "shared-base"
    calls = {"initialise": "initialise", "state_dict": "state-exact", "load_state_dict": "state-exact"}
    return calls.get(trace.stop.call, "losses-finite")


def stopped(trace: Trace) -> Finding:
    """Return the end of a broken training as a finding."""
    return Finding(str(trace.stop), trace.stands(), "Correct it: the training cannot go on from here.")


def faults_of(call: LossCall) -> Iterator[Fault]:
    """Yield what is wrong with a call's terms, and with the gradients they led to."""
    terms = call.terms
    if not isinstance(terms, dict) or not terms:
        yield None, f"losses returned {_kind(terms)}", "Return a dict of terms, {'cross_entropy': ...}, never empty."
        return
    faults = [fault for name, value in terms.items() if (fault := _term_fault(name, value)) is not None]
    if faults:
        yield from faults
        return
    if not call.attached:
        advice = "Compute it from `output` without detach() or no_grad()."
        yield None, "the loss carries no gradient", advice
    elif call.gradients == 0:
        yield None, "no parameter of the model receives a gradient", "Compute the loss from `output`."
    elif call.bad_gradients:
        advice = "Look for the root or the logarithm of 0, or a division by 0, under a mask."
        yield None, f"the gradient of {listed(call.bad_gradients)} is not finite", advice


def _term_fault(name: Any, value: Any) -> Fault | None:
    if not isinstance(name, str) or not name:
        return str(name), f"a term is called {name!r}", "Name every term by a string."
    if not isinstance(value, Tensor):
        return name, f"a term is {_kind(value)}, not a tensor", "Return a differentiable scalar tensor."
    if value.shape != () or not value.is_floating_point():
        found = f"a term has the shape {tuple(value.shape)} and the type {value.dtype}"
        return name, found, "Reduce it to a floating-point scalar (mean or sum)."
    if not value.isfinite():
        return name, f"a term is {float(value)}", "Look for a division by 0 or the logarithm of 0."
    return None


def _kind(value: Any) -> str:
    return "an empty dict" if value == {} else f"a {type(value).__name__}"
