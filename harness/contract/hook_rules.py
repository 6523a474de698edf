"""Rules about the hooks around the loss, one for each mechanism that a method may use."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cispbench.harness.contract import snapshots
from cispbench.harness.contract.bench import Bench
from cispbench.harness.contract.diagnosis import failure_violation, rule_of_failure
from cispbench.harness.contract.probe import first_batch
from cispbench.harness.contract.recorded import RecordedStep, changes, copy_state, listed
from cispbench.harness.contract.rules import rule
from cispbench.harness.contract.verdict import Location, NotApplicable, Violation
from cispbench.harness.evaluate import Prediction
from cispbench.harness.method import Method, Output
from cispbench.harness.runs.declared import check_declared
from cispbench.splits.errors import MethodError, describe_error
from cispbench.splits.settings import Setting


@rule
def declarations(bench: Bench) -> Iterator[Violation | str]:
    """What a method declares depends on its options alone, and fits together: the classes of `layout` add up, channels
    that are no classes have `scores`, companions say how to get them.
    """
    place, setting = Location(bench.model, bench.setting.name), bench.setting
    try:
        first, second = (_declared(method, setting) for method in (bench.method, bench.make()))
        again = _declared(bench.method, setting)
    except Exception as error:  # noqa: BLE001 (whatever a plug-in raises is a violation)
        yield Violation(f"a declaration raised {describe_error(error)}", place, "It must serve every setting.")
        return
    for name in first:
        if not first[name] == again[name] == second[name]:
            yield Violation(f"{name} returns something else when it is asked again", place, "Use the options alone.")
    for companion in bench.method.companions(setting):
        if not companion.how_to_get:
            found = f"the companion {companion.name!r} does not say where its maps come from"
            yield Violation(found, place, "Give it `how_to_get`, a sentence.")
    try:
        check_declared(bench.method, setting, devices=1, micro_batch=None)
    except MethodError as error:
        yield Violation(str(error).rstrip("."), place, "Nothing can be planned with this.")
        return
    if rule_of_failure(bench.main) == "declarations":
        yield failure_violation(bench.main)


def _declared(method: Method, setting: Setting) -> dict[str, object]:
    steps = range(len(setting.steps))
    return {
        "layout": [method.layout(setting, step) for step in steps],
        "phases": [method.phases(setting, step) for step in steps],
        "companions": method.companions(setting),
        "memory": method.memory(),
    }


@rule
def select_exemplars(bench: Bench) -> Iterator[Violation | str]:
    """At most `memory().size` exemplars are chosen, each once, from those that were kept and the images of the step
    before.
    """
    if bench.method.memory() is None:
        raise NotApplicable("it has no memory")
    bench.require_second_step()
    # The harness holds every choice against this rule, before anything is trained with it.
    if rule_of_failure(bench.main) == "select-exemplars":
        yield failure_violation(bench.main)
        return
    bench.require_finished()
    if not any(step.exemplars for step in bench.main.steps):
        yield "no exemplar was chosen"


@rule
def prepare(bench: Bench) -> Iterator[Violation | str]:
    """`prepare` returns a batch and leaves the given one as it is; images, labels, names, origin and companions have
    one length, that of the given batch or a multiple of it.
    """
    training = bench.main
    faults = [(step, fault) for step in training.steps for fault in step.faults]
    for step, fault in faults:
        advice = "Return dataclasses.replace(batch, ...) with tensors of its own."
        yield Violation(fault, training.at(step), advice)
    if not faults:
        if rule_of_failure(training) == "prepare":
            yield failure_violation(training)
        bench.require_finished()


@rule
def weights_untouched(bench: Bench) -> Iterator[Violation | str]:
    """Weights are changed in `initialise` and `after_training` alone: `select_exemplars`, `before_training`, `prepare`
    and `after_gradients` leave them as they are.
    """
    training = bench.main
    for step in training.steps:
        for hook, names in step.written.items():
            advice = "Change weights in `initialise` or `after_training`, gradients in `after_gradients`."
            yield Violation(f"{hook} changed {listed(names)}", training.at(step), advice)
    bench.require_finished()


@rule
def reads_previous(bench: Bench) -> Iterator[Violation | str]:
    """A method with `reads_previous = False` needs no output of the previous network, and does not run it in `losses`
    either.
    """
    bench.require_second_step()
    training = bench.finished
    if not bench.method.reads_previous:
        for call, place in training.calls():
            if call.ran_previous:
                advice = "Leave reads_previous = True, and read `previous`: the harness runs it once for each batch."
                yield Violation("losses runs the previous network itself", place, advice)
                return
        return
    if not any(call.read_previous for call, _ in training.calls()):
        yield "losses read nothing of the previous network's output: reads_previous = False spares its pass"


@rule
def scores(bench: Bench) -> Iterator[Violation | str]:
    """`scores` is a pure function of the options and the output: equal at each call, finite, of (B, K, H, W) with a
    channel for each class known so far, and it changes nothing.
    """
    training = bench.main
    if rule_of_failure(training) == "scores":
        yield failure_violation(training)
        return
    bench.require_finished()
    for step in training.steps:
        place, advice = training.at(step), "Compute it from `output` and the options alone, and write to no tensor."
        output = _output_after(bench, step)
        before = snapshots.copied(snapshots.of_output(output))
        try:
            found = list(_score_faults(bench, step, output))
        except Exception as error:  # noqa: BLE001 (whatever a plug-in raises is a violation)
            found = [f"scores raised {describe_error(error)}"]
        written = changes(before, snapshots.of_output(output))
        found += [f"scores changed {listed(written)} in place"] if written else []
        for fault in found[:1]:
            yield Violation(fault, place, advice)


def _score_faults(bench: Bench, step: RecordedStep, output: Output) -> Iterator[str]:
    setting, number = step.context.setting, step.context.step
    fresh, restored = bench.make(), bench.make()
    if number > 0 or not restored.shared_base:
        restored.load_state_dict(copy_state(step.state_after))
    Prediction(fresh.scores, setting.num_classes(number), setting.num_foreground + 1)(output)
    first, again, other = (method.scores(output) for method in (fresh, fresh, restored))
    if not first.isfinite().all():
        yield "scores are not finite"
    if not _equal(first, again):
        yield "scores differ between two calls with one output"
    elif not _equal(first, other):
        yield "scores depend on the method's state"


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


@torch.no_grad()
def _output_after(bench: Bench, step: RecordedStep) -> Output:
    model = copy.deepcopy(step.context.model).eval()
    model.load_state_dict(step.end)
    output: Output = model(*first_batch(bench, step.context.step).inputs)
    return replace(output, logits=output.logits.clone())
