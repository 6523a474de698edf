"""Rules about a run: resumed it is the same, repeated it is the same, and it learns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cispbench.harness.contract.bench import Bench
from cispbench.harness.contract.loss_rules import stopped, stopped_by
from cispbench.harness.contract.probe import Probe, first_batch, train, values
from cispbench.harness.contract.rules import rule
from cispbench.harness.contract.trace import LossCall
from cispbench.harness.contract.verdict import Finding

STATE_ADVICE = "Return from `state_dict` all that later losses depend on, and take it back in `load_state_dict`."


@rule
def state_exact(bench: Bench) -> Iterator[Finding | str]:
    """A method restored from `state_dict`, in the middle of a step or between steps, goes on with the same losses."""
    trace = bench.main
    for step in trace.steps:
        fault = _state_fault(step.kept_after) or step.kept_error
        if fault is not None:
            advice = "Return a dict of tensors by name; each of its own memory."
            yield Finding(f"the state of the method is wrong: {fault}", trace.place(step), advice)
            return
    if trace.stop is not None and stopped_by(trace) == "state-exact":
        yield stopped(trace)
    for step, iteration, call in trace.calls():
        found = _retold_fault(call)
        if found is not None:
            bench.needs_repetition()
            yield Finding(f"restored within the step, {found}", trace.place(step, iteration), STATE_ADVICE)
            return
    difference = bench.deviation(fresh=True)
    if difference is not None:
        yield Finding(f"with a new instance for each step, {difference}", trace.place(), STATE_ADVICE)


def _state_fault(state: Any) -> str | None:
    if state is None:
        return None  # the step did not get so far
    if not isinstance(state, dict):
        return f"it is a {type(state).__name__}"
    names = [name for name in state if not isinstance(name, str)]
    wrong = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if names:
        return f"the key {names[0]!r} is no string"
    return f"{wrong[0]} is a {type(state[wrong[0]]).__name__}" if wrong else None


def _retold_fault(call: LossCall) -> str | None:
    if call.retold is None or isinstance(call.retold, str) or not isinstance(call.terms, dict):
        return call.retold if isinstance(call.retold, str) else None
    if call.retold.keys() != call.terms.keys():
        return f"the terms are {', '.join(call.retold)} instead of {', '.join(call.terms)}"
    for name, value in call.terms.items():
        if not torch.equal(call.retold[name], value):
            return f"the term {name} is {float(call.retold[name]):.9g} instead of {float(value):.9g}"
    return None


@rule
def deterministic(bench: Bench) -> Iterator[Finding | str]:
    """The same training with the same seed has the same losses and weights, bit for bit."""
    difference = bench.deviation()
    if difference is not None:
        advice = "Draw chance from torch's, NumPy's or Python's global generator, which the harness seeds, alone."
        yield Finding(f"when the training is repeated, {difference}", bench.main.place(), advice)


@rule
def learns(bench: Bench) -> Iterator[Finding | str]:
    """A few dozen iterations on one batch lower its loss: the last quarter's mean is below the first quarter's."""
    step = 0 if bench.joint else 1
    trace = train(bench, step, Probe([first_batch(bench, step)] * bench.sizes.learning))
    if trace.stop is not None:
        found, advice = str(trace.stop), "The short trainings went well: look for what grows with the iterations."
        yield Finding(found, trace.stands(), advice)
        return
    totals = [sum(values(call).values()) for call in trace.steps[0].calls]
    quarter = max(1, len(totals) // 4)
    first, last = (sum(part) / quarter for part in (totals[:quarter], totals[-quarter:]))
    if not last < first:
        found = f"the loss goes from {first:.4g} to {last:.4g} in {len(totals)} iterations"
        advice = f"Look for a wrong sign, a missing gradient, or a too high learning rate in {bench.cls.name}'s recipe."
        yield Finding(found, trace.place(trace.steps[0]), advice)
