"""What is wrong with one call of ``losses``, or with a training that failed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from cispbench.harness.contract import snapshots
from cispbench.harness.contract.recorded import RecordedCall, RecordedTraining, changes, listed
from cispbench.harness.contract.verdict import Location, Violation
from cispbench.harness.method import Batch


def call_violations(call: RecordedCall, place: Location, when: str = "") -> Iterator[Violation]:
    """Yield what is wrong with the terms of a call, else with the gradients; ``when`` is added to each sentence."""
    terms = call.terms
    if not isinstance(terms, dict) or not terms:
        advice = "Return a dict of terms, {'cross_entropy': ...}, never empty."
        yield Violation(f"losses returned {_kind(terms)}{when}", place, advice)
        return
    faults = {str(name): fault for name, value in terms.items() if (fault := _term_fault(name, value)) is not None}
    for name, (found, advice) in faults.items():
        yield Violation(f"{found}{when}", replace(place, term=name), advice)
    gradients = _gradients_fault(call) if not faults else None
    if gradients is not None:
        yield Violation(f"{gradients[0]}{when}", place, gradients[1])


def _term_fault(name: Any, value: Any) -> tuple[str, str] | None:
    if not isinstance(name, str) or not name:
        return f"a term is called {name!r}", "Name every term by a string."
    if not isinstance(value, Tensor):
        return f"a term is {_kind(value)}, not a tensor", "Return a differentiable scalar tensor."
    if value.shape != () or not value.is_floating_point():
        found = f"a term has the shape {tuple(value.shape)} and the type {value.dtype}"
        return found, "Reduce it to a floating-point scalar (mean or sum)."
    if not value.isfinite():
        return f"a term is {float(value)}", "Look for a division by 0 (a mean over no pixels?) or the logarithm of 0."
    return None


def _gradients_fault(call: RecordedCall) -> tuple[str, str] | None:
    if not call.differentiable:
        return "the loss carries no gradient", "Compute it from `output` without detach() or no_grad()."
    if call.gradients is None:  # the training failed before the next call
        return None
    if not call.gradients:
        return "no parameter of the model receives a gradient", "Compute the loss from `output`."
    bad = tuple(name for name, finite in call.gradients.items() if not finite)
    advice = "Look for the root or the logarithm of 0, or a division by 0, under a mask."
    return (f"the gradient of {listed(bad)} is not finite", advice) if bad else None


def _kind(value: Any) -> str:
    return "an empty dict" if value == {} else f"a {type(value).__name__}"


def prepare_fault(loaded: Batch, given: Batch, prepared: Any) -> str | None:
    """Return what is wrong with a call of ``prepare``: it got ``given``, a copy of which is ``loaded``."""
    changed = changes(snapshots.of_batch(loaded), snapshots.of_batch(given))
    if changed:
        return f"prepare changed {listed(changed)} in place"
    if not isinstance(prepared, Batch):
        return f"prepare returned {_kind(prepared)}, not a Batch"
    before, after = snapshots.of_batch(loaded), snapshots.of_batch(prepared)
    if before.keys() != after.keys():
        return f"prepare lost or added {listed(tuple(sorted(before.keys() ^ after.keys())))}"
    images = len(prepared.ids)
    lengths = {"batch.ids": images, **{n: len(t) for n, t in after.items() if isinstance(t, Tensor)}}
    if len(set(lengths.values())) > 1:
        return "prepare returned parts of several lengths: " + ", ".join(f"{n} {k}" for n, k in lengths.items())
    if images == 0 or images % len(loaded.ids):
        return f"prepare returned {images} images for {len(loaded.ids)}"
    return None


def rule_of_failure(training: RecordedTraining) -> str | None:
    """Return the one rule that reports the failure of a training, None for a training that did not fail."""
    if training.error is None:
        return None
    if not training.planned:
        return "declarations"
    step = training.steps[-1] if training.steps else None
    if step is not None and step.state_fault is not None:
        return "state-exact"
    # Chosen, and then refused by the harness, which calls `initialise` next.
    if step is not None and step.exemplars is not None and not step.initial and training.calling is None:
        return "select-exemplars"
    calls = {"initialise": "initialise", "state_dict": "state-exact", "load_state_dict": "state-exact"}
    calls |= {"select_exemplars": "select-exemplars", "scores": "scores", "prepare": "prepare"}
    if step is not None and step.faults:
        return "prepare"
    return calls.get(training.calling or "", "losses-finite")


def failure_violation(training: RecordedTraining) -> Violation:
    """Return the failure of a training as a violation."""
    return Violation(str(training.failure), training.location, "Correct it: the training cannot go on from here.")
