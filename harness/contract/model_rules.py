"""Rules about the models: what a method may touch of them, and that any number of classes will do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from cispbench.harness.contract.bench import MANY_CLASSES, ONE_CLASS, SEED, Bench
from cispbench.harness.contract.loss_rules import stopped, stopped_by
from cispbench.harness.contract.probe import Probe, first_batch, last_step, train, values
from cispbench.harness.contract.rules import rule
from cispbench.harness.contract.trace import State, StepTrace, Trace, listed
from cispbench.harness.contract.verdict import Finding, NotApplicable
from cispbench.harness.method import VOID, Batch, Output, StepContext
from cispbench.harness.models.interface import ClassGroup, IncrementalModel
from cispbench.splits.settings import Setting, Step

# Relative: sums are taken in another order, and a pixel on a threshold may fall to its other side.
NUMBERING_TOLERANCE = 1e-4
CLASS_DIMENSION = {"logits": 1, "masks": 1, "class_features": 1, "class_tokens": 0}


@rule
def previous_untouched(bench: Bench) -> Iterator[Finding | str]:
    """The previous model, its outputs and the batch stay as they are, and no gradient flows into any of them."""
    trace = bench.main
    for step, iteration, call in trace.calls():
        lent = tuple(name for name in call.changed if not name.startswith("model."))
        if lent:
            yield Finding(f"losses changed {listed(lent)} in place", trace.place(step, iteration), "Work on a copy.")
        if call.with_gradient:
            found = f"losses made {listed(call.with_gradient)} require gradients"
            yield Finding(found, trace.place(step, iteration), "Leave what is lent as it is.")
    yield from _changed_previous(trace)
    last = last_step(bench)
    if bench.joint:
        yield "there is no previous model"
        return
    probed = train(bench, last, Probe([first_batch(bench, last)] * 2, previous_learns=True))
    yield from _changed_previous(probed)


def _changed_previous(trace: Trace) -> Iterator[Finding]:
    for step in trace.steps:
        if step.previous_changed:
            found = f"the previous model has changed: {listed(step.previous_changed)}"
            advice = "It is frozen: call it under torch.no_grad(), and write to nothing of it."
            yield Finding(found, trace.place(step), advice)


@rule
def initialise(bench: Bench) -> Iterator[Finding | str]:
    """`initialise` sets finite parameters of the new classes, keeps all shapes, and of the rest at most the bias of
    the background changes.
    """
    trace = bench.main
    for step in trace.steps:
        for found in _initialise_faults(step):
            yield Finding(found, trace.place(step), "Set the last of context.model.class_groups() alone.")
    if trace.stop is not None and stopped_by(trace) == "initialise":
        yield stopped(trace)
    bench.needs_end()


def _initialise_faults(step: StepTrace) -> Iterator[str]:
    before, after = step.start.state_dict(), step.initial
    if not after:
        return  # it raised
    if step.initial_classes != step.old_classes + step.new_classes:
        yield f"the model has {step.initial_classes} classes instead of {step.old_classes + step.new_classes}"
    reshaped = [n for n in {*before, *after} if n not in before or n not in after or before[n].shape != after[n].shape]
    if reshaped:
        yield f"parameters appear, vanish or change their shape: {listed(tuple(sorted(reshaped)))}"
        return
    broken = tuple(name for name, tensor in after.items() if not tensor.isfinite().all())
    if broken:
        yield f"parameters are not finite: {listed(broken)}"
    if step.previous is not None:
        kept = step.previous.state_dict()
        free = _background_bias(step.start)
        changed = tuple(n for n in kept if not torch.equal(_without(kept, n, free), _without(after, n, free)))
        if changed:
            yield f"parameters of the old classes or of the network have changed: {listed(changed)}"


def _background_bias(model: IncrementalModel) -> str:
    bias = model.class_groups()[0].bias
    return next(name for name, parameter in model.named_parameters() if parameter is bias)


def _without(state: State, name: str, free: str) -> Tensor:
    return state[name][1:] if name == free else state[name]


@rule
def new_classes_one_and_many(bench: Bench) -> Iterator[Finding | str]:
    """A step may add a single class, or ten."""
    bench.needs_steps()
    for setting, what in ((ONE_CLASS, "with one new class"), (MANY_CLASSES, "with ten new classes")):
        reason = bench.unsupported(setting)
        if reason is not None:
            yield f"{setting}: {reason}"
            continue
        trace = bench.step_of(setting)
        if trace.stop is not None:
            yield Finding(f"{what} {trace.stop}", trace.stands(), "Serve any number of new classes from 1 on.")


@rule
def class_numbering(bench: Bench) -> Iterator[Finding | str]:
    """The loss is the same when old classes swap their numbers among themselves, and new ones among themselves.

    A wrong count of the old classes breaks this: the last old class, or the first new one, is then treated unlike its
    equals. Asked at the first step with old classes, before which a method has nothing to remember by number.
    """
    step = 0 if bench.joint else 1
    seen = bench.finished.steps[step]
    if seen.kept_before:
        raise NotApplicable(f"it keeps {listed(tuple(seen.kept_before))} from step 0, maybe by the classes' numbers")
    batches = [call.batch for call in seen.calls]
    plain = Probe(batches[:1], seen.measured or batches, from_end=True)
    order = _order(seen)
    renumbered = replace(
        plain,
        trained=[_renumber_batch(batch, order) for batch in plain.trained],
        measured=[_renumber_batch(batch, order) for batch in plain.measured or ()],
        setting=_renumber_setting(bench.setting, order, step),
        prepare=lambda context: _renumber_models(context, order),
    )
    one, other = train(bench, step, plain), train(bench, step, renumbered)
    for trace, what in ((one, "with the step's end as its beginning"), (other, "with classes renumbered")):
        if trace.stop is not None:
            yield Finding(f"{what} {trace.stop}", trace.stands(), "Depend on no class's number, nor on the weights.")
            return
    a, b = (values(trace.steps[-1].calls[0]) for trace in (one, other))
    # Asked before the terms are compared: random losses can agree within the tolerance by luck.
    bench.needs_repetition()
    _refuse_random_losses(bench, step, plain, a)
    for name in a:
        if not math.isclose(a[name], b.get(name, math.nan), rel_tol=NUMBERING_TOLERANCE, abs_tol=1e-6):
            yield Finding(
                f"the term {name} is {b.get(name, math.nan):.6g} instead of {a[name]:.6g} once classes swap numbers",
                other.place(other.steps[-1], 0, name),
                "Old classes are the channels below context.old_classes, new ones those from there on.",
            )


def _refuse_random_losses(bench: Bench, step: int, plain: Probe, first: dict[str, float]) -> None:
    again = train(bench, step, replace(plain, seed=SEED + 1))
    if again.stop is None and values(again.steps[-1].calls[0]) != first:
        raise NotApplicable("its losses are drawn at random")


def _order(step: StepTrace) -> list[int]:
    """Return which class takes each number: every group of classes turns round by one, background stays."""
    order: list[int] = []
    for group in step.start.class_groups():
        numbers = list(range(len(order), len(order) + group.bias.numel()))
        fixed, ring = ([0], numbers[1:]) if numbers[0] == 0 else ([], numbers)
        order += fixed + ring[1:] + ring[:1]
    return order


def _renumber_batch(batch: Batch, order: list[int]) -> Batch:
    table = torch.arange(VOID + 1)
    table[order] = torch.arange(len(order))
    return Batch(batch.images, table[batch.target], batch.ids)


def _renumber_setting(setting: Setting, order: list[int], last: int) -> Setting:
    learnt = [setting.learning_order[index] for index in order]
    steps = [
        Step(step.index, tuple(learnt[max(1, setting.old_classes(step.index)) : setting.num_classes(step.index)]))
        for step in setting.steps[: last + 1]
    ]
    return replace(setting, steps=(*steps, *setting.steps[last + 1 :]))


def _renumber_models(context: StepContext, order: list[int]) -> None:
    for model in (context.model, context.previous):
        if model is not None:
            _Renumbering(model, torch.tensor(order[: model.num_classes]))


class _Renumbering:
    """A model whose classes have other numbers to whoever looks at it, in its outputs and in ``class_groups``.

    ``places[i]`` is the class that goes by the number i. Its parameters stay where they are.
    """

    def __init__(self, model: IncrementalModel, places: Tensor) -> None:
        self._places, self._groups, self._within = places, model.class_groups, False
        model.register_forward_pre_hook(self._enter)
        model.register_forward_hook(self._leave)
        vars(model)["class_groups"] = self.class_groups

    def _enter(self, *_: Any) -> None:
        self._within = True  # a model may read its own groups in its forward pass

    def _leave(self, _: nn.Module, __: Any, output: Output) -> Output:
        self._within = False
        return replace(
            output,
            **{
                name: getattr(output, name).index_select(where, self._places) for name, where in CLASS_DIMENSION.items()
            },
        )

    def class_groups(self) -> list[ClassGroup]:
        """Return the groups with their classes renumbered, as tensors that carry gradients to the parameters."""
        groups, turned, start = self._groups(), [], 0
        for group in () if self._within else groups:
            count = group.bias.numel()
            own = self._places[start : start + count] - start
            weight = group.rows[own].view_as(group.weight)
            turned.append(ClassGroup(cast(nn.Parameter, weight), cast(nn.Parameter, group.bias[own])))
            start += count
        return turned or groups
