"""Rules about whole trainings: repeated, resumed, with other labels hidden, and whether the loss falls."""

from __future__ import annotations

from collections.abc import Iterator

from cispbench.harness.contract.bench import Bench
from cispbench.harness.contract.diagnosis import failure_violation, rule_of_failure
from cispbench.harness.contract.probe import first_batch, train_again
from cispbench.harness.contract.recorded import listed
from cispbench.harness.contract.rules import rule
from cispbench.harness.contract.verdict import Violation


@rule
def no_future_labels(bench: Bench) -> Iterator[Violation | str]:
    """Labels of future and old classes are not learnt from, but for those of exemplars: the training is the same, bit
    for bit, when the masks lose them or have them swapped.
    """
    bench.require_second_step()
    difference = bench.difference(scramble=True)
    if difference is not None:
        found = f"with the labels of other classes scrambled in the data, {difference}"
        yield Violation(found, bench.main.at(), "Learn from batch.target alone; read no masks.")


@rule
def test_images_never_read(bench: Bench) -> Iterator[Violation | str]:
    """While a step is trained, test images are neither read nor listed."""
    training = bench.main
    for step in training.steps:
        if step.test_reads:
            found = f"the training {listed(tuple(dict.fromkeys(step.test_reads)))}"
            yield Violation(found, training.at(step), "Use what the method is given: batches of training images.")
    bench.require_finished()


@rule
def state_exact(bench: Bench) -> Iterator[Violation | str]:
    """A method restored from `state_dict`, within a phase, between phases or between steps, goes on with the same
    losses; no hook that is finished is called again.
    """
    training = bench.main
    for step in training.steps:
        if step.state_fault is not None:
            advice = "Return a dict of tensors by name, no two of which share memory."
            yield Violation(f"the state of the method is wrong: {step.state_fault}", training.at(step), advice)
            return
    if rule_of_failure(training) == "state-exact":
        yield failure_violation(training)
    difference = bench.difference(interrupt=True)
    if difference is not None:
        advice = "Return from `state_dict` all that later losses depend on, and take it back in `load_state_dict`."
        yield Violation(f"resumed by a new instance of the method, {difference}", training.at(), advice)


@rule
def deterministic(bench: Bench) -> Iterator[Violation | str]:
    """The same training with the same seed has the same losses, weights and exemplars, bit for bit."""
    difference = bench.difference()
    if difference is not None:
        advice = "Draw random numbers from the global RNGs of torch, NumPy or Python alone: the harness seeds them."
        yield Violation(f"when the training is repeated, {difference}", bench.main.at(), advice)


@rule
def learns(bench: Bench) -> Iterator[Violation | str]:
    """A few dozen iterations on one batch lower its loss: the last quarter's mean is below the first quarter's."""
    step = 0 if bench.joint else 1
    training = train_again(bench, step, [first_batch(bench, step)] * bench.sizes.learning)
    if training.failure is not None:
        advice = "The short trainings went well: look for what grows with the iterations."
        yield Violation(training.failure, training.location, advice)
        return
    totals = [sum(call.values.values()) for call, _ in training.calls()]
    quarter = max(1, len(totals) // 4)
    first, last = (sum(part) / quarter for part in (totals[:quarter], totals[-quarter:]))
    if not last < first:
        found = f"the loss goes from {first:.4g} to {last:.4g} in {len(totals)} iterations"
        advice = f"Look for a wrong sign, a missing gradient, or a too high learning rate in {bench.cls.name}'s recipe."
        yield Violation(found, training.at(training.steps[0]), advice)
