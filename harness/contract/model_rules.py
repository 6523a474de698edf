"""Rules about the models: what a method may change of them, and which numbers of classes it must support."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from cispbench.harness.contract.bench import MANY_CLASSES, ONE_CLASS, SEED, Bench
from cispbench.harness.contract.diagnosis import failure_violation, rule_of_failure
from cispbench.harness.contract.probe import first_batch, freeze_mode, last_step, train_again
from cispbench.harness.contract.recorded import RecordedStep, RecordedTraining, State, differing_terms, listed
from cispbench.harness.contract.renumbering import renumber_batch, renumber_model, renumber_setting, rotated_classes
from cispbench.harness.contract.rules import rule
from cispbench.harness.contract.verdict import NotApplicable, Violation
from cispbench.harness.method import StepContext
from cispbench.harness.models.interface import IncrementalModel

# Relative: sums are computed in another order, and a pixel at a threshold may fall on its other side.
NUMBERING_TOLERANCE = 1e-4


@rule
def previous_untouched(bench: Bench) -> Iterator[Violation | str]:
    """The previous model, its outputs and the batch stay as they are, and no gradient flows into any of them."""
    training = bench.main
    for call, place in training.calls():
        changed = tuple(name for name in call.changed if name.startswith(("batch.", "previous.")))
        if changed:
            yield Violation(f"losses changed {listed(changed)} in place", place, "Work on a copy.")
    yield from _changed_previous(training)
    last = last_step(bench)
    if bench.joint:
        yield "there is no previous model"
        return
    # In an ordinary training the previous model's parameters require no gradient, which hides a gradient that flows.
    yield from _changed_previous(train_again(bench, last, [first_batch(bench, last)] * 2, previous_learns=True))


def _changed_previous(training: RecordedTraining) -> Iterator[Violation]:
    for step in training.steps:
        if step.previous_changed:
            found = f"the previous model has changed: {listed(step.previous_changed)}"
            advice = "It is frozen: call it under torch.no_grad(), and change nothing of it."
            yield Violation(found, training.at(step), advice)


@rule
def initialise(bench: Bench) -> Iterator[Violation | str]:
    """`initialise` sets finite parameters of the new classes, keeps all shapes, and of the rest at most the bias of
    the background changes.
    """
    training = bench.main
    for step in training.steps:
        for found in _initialise_faults(step):
            yield Violation(found, training.at(step), "Set the last of context.model.class_groups() alone.")
    if rule_of_failure(training) == "initialise":
        yield failure_violation(training)
    bench.require_finished()


def _initialise_faults(step: RecordedStep) -> Iterator[str]:
    before, after = step.context.model.state_dict(), step.initial
    if not after:
        return  # it raised
    reshaped = [n for n in {*before, *after} if n not in before or n not in after or before[n].shape != after[n].shape]
    if reshaped:
        yield f"parameters appear, vanish or change their shape: {listed(tuple(sorted(reshaped)))}"
        return
    bad = tuple(name for name, tensor in after.items() if not tensor.isfinite().all())
    if bad:
        yield f"parameters are not finite: {listed(bad)}"
    if step.context.previous is not None:
        # As they are in the grown network: growth itself may change or replace some, as where branches are merged.
        kept = [name for name in step.context.previous.state_dict() if name in before]
        free = _background_bias(step.context.model)
        changed = tuple(n for n in kept if not torch.equal(_held(before, n, free), _held(after, n, free)))
        if changed:
            yield f"parameters of the old classes or of the network have changed: {listed(changed)}"


def _background_bias(model: IncrementalModel) -> str:
    bias = model.class_groups()[0].bias
    return next(name for name, parameter in model.named_parameters() if parameter is bias)


def _held(state: State, name: str, free: str) -> Tensor:
    """Return what must stay of a tensor: of the one called ``free`` all but the first element."""
    return state[name][1:] if name == free else state[name]


@rule
def new_classes_one_and_many(bench: Bench) -> Iterator[Violation | str]:
    """A step may add a single class, or ten."""
    bench.require_second_step()
    for setting, what in ((ONE_CLASS, "with one new class"), (MANY_CLASSES, "with ten new classes")):
        reason = bench.unsupported(setting)
        if reason is not None:
            yield f"{setting}: {reason}"
            continue
        training = bench.second_step_of(setting)
        if training.failure is not None:
            advice = "Support any number of new classes from 1 on."
            yield Violation(f"{what} {training.failure}", training.location, advice)


@rule
def class_numbering(bench: Bench) -> Iterator[Violation | str]:
    """The loss is the same when old classes swap their numbers among themselves, and new ones among themselves.

    A wrong count of the old classes breaks this: the last old class, or the first new one, is then treated unlike the
    other classes of its kind. Examined at the first step with old classes: before it, a method remembers nothing by
    class number.
    """
    step = 0 if bench.joint else 1
    seen = bench.finished.steps[step]
    if seen.state_before:
        raise NotApplicable(f"it keeps {listed(tuple(seen.state_before))} from step 0, maybe by the classes' numbers")
    trained = [first_batch(bench, step)]
    # From the end of the step, because its new classes may all be equal at the start.
    again = partial(train_again, bench, step, from_end=True)
    order = rotated_classes(seen.context.model)

    def renumber_models(context: StepContext) -> None:
        freeze_mode(context)
        for model in (context.model, context.previous):
            if model is not None:
                renumber_model(model, torch.tensor(order[: model.num_classes]))

    one = again(trained, prepare=freeze_mode)
    other = again(
        trained,
        seen_as=partial(renumber_batch, order=order),
        setting=renumber_setting(bench.setting, order, step),
        prepare=renumber_models,
    )
    for training, what in ((one, "with the step's end as its beginning"), (other, "with classes renumbered")):
        if training.failure is not None:
            advice = "Depend on no class's number, nor on the weights."
            yield Violation(f"{what} {training.failure}", training.location, advice)
            return
    (a, _), (b, place) = next(one.calls()), next(other.calls())
    # Before the terms are compared: random losses can agree within the tolerance by luck.
    bench.require_repeatable()
    reseeded = again(trained, seed=SEED + 1, prepare=freeze_mode)
    if reseeded.failure is None and next(reseeded.calls())[0].values != a.values:
        raise NotApplicable("its losses are drawn at random")
    for name, found in differing_terms(a.values, b.values, NUMBERING_TOLERANCE):
        yield Violation(
            f"{found} once classes swap numbers",
            replace(place, term=name),
            "Old classes are the channels below context.old_classes, new ones those from there on.",
        )
