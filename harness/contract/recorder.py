"""A method that passes every call on to another one and records what the call did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from cispbench.harness.contract import snapshots
from cispbench.harness.contract.diagnosis import prepare_fault
from cispbench.harness.contract.recorded import (
    NotedOutput,
    RecordedCall,
    RecordedStep,
    RecordedTraining,
    Snapshot,
    State,
    changes,
    copy_batch,
    copy_state,
    state_fault,
)
from cispbench.harness.contract.sources import shown_labels
from cispbench.harness.method import Batch, Companion, Exemplar, Group, Memory, Method, Output, StepContext
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.training.shared_base import SharedBase
from cispbench.harness.wrapper import overrides
from cispbench.splits.settings import Setting

# What the harness reads of a method besides its functions; of the instance, because a wrapper has them from its base.
FACTS = ("name", "version", "joint", "Options", "needs", "reads_previous", "micro_batches", "devices")

STATE = "state."  # of names in what a call may change

OUTSIDE_ITERATIONS = ("select_exemplars", "initialise", "before_training", "after_training")


def recorder(
    make: Callable[[], Method],
    training: RecordedTraining,
    *,
    keep_models: bool = False,
    new_instances: bool = False,
    initialised: Callable[[StepContext], None] | None = None,
) -> Method:
    """Return a method that does what an instance from ``make`` does, and records it in ``training``.

    ``keep_models``: the models are copied at the start of each step, so that the step can be trained again.
    ``new_instances``: each step has a new instance, which knows nothing but the state that the step before stored.
    ``initialised`` is called after `initialise`, and may change the models. A base that methods share is recorded
    as the harness trains it.
    """
    inner = make()
    facts: dict[str, Any] = {name: getattr(inner, name) for name in FACTS}
    if not overrides(inner, "after_gradients"):  # the harness looks at gradients for those alone who do
        facts["after_gradients"] = Method.after_gradients
    cls = type("Recorder", (_Recorder,), facts)
    recording: Method = cls(inner, training, Recording(make, keep_models, new_instances, initialised))
    return recording


@dataclass(frozen=True)
class Recording:
    """How a training is recorded, see ``recorder``."""

    make: Callable[[], Method]
    keep_models: bool
    new_instances: bool
    initialised: Callable[[StepContext], None] | None


class _Recorder(Method):
    name = "recorder"
    shared_base = False  # so that its step 0 is recorded, too

    def __init__(self, method: Method, training: RecordedTraining, how: Recording) -> None:
        super().__init__(method.options)
        self._method, self._training, self._how = method, training, how
        # A state is loaded in every later step, and in no step 0: that makes it the method's turn.
        self._inner: Method = SharedBase() if method.shared_base else method
        self._state_before: State | None = None
        self._previous_before: Snapshot = {}
        self._loaded: list[Batch] = []  # what `prepare` was given, and `losses` not yet

    @property
    def _step(self) -> RecordedStep:
        return self._training.steps[-1]

    @contextmanager
    def _calling(self, call: str, context: StepContext | None = None, *, buffers: bool = False) -> Iterator[None]:
        """Call the method; with a ``context`` it must not change the model, nor the ``buffers`` if they count."""
        before = {} if context is None else snapshots.of_weights(context.model, buffers=buffers)
        before = snapshots.copied(before)
        self._training.calling = call
        if call in OUTSIDE_ITERATIONS:
            self._step.hooks.append(call)
        yield
        # Not reached when the call raises: a failed training then says which call failed.
        self._training.calling = None
        if context is not None:
            written = changes(before, snapshots.of_weights(context.model, buffers=buffers))
            if written:
                self._step.written.setdefault(call, written)

    # Declarations.

    def unsupported(self, setting: Setting, model: str) -> str | None:
        return self._method.unsupported(setting, model)

    def layout(self, setting: Setting, step: int) -> tuple[Group, ...]:
        return self._inner.layout(setting, step)

    def phases(self, setting: Setting, step: int) -> tuple[str, ...]:
        return self._inner.phases(setting, step)

    def companions(self, setting: Setting) -> tuple[Companion, ...]:
        return self._method.companions(setting)

    def memory(self) -> Memory | None:
        return self._method.memory()

    def scores(self, output: Output) -> Tensor:
        # Not taken back: the harness looks at what it gets, and nothing else of the method follows a test.
        self._training.calling = "scores"
        return self._method.scores(output)

    # The hooks of a step.

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._inner = self._method
        # Between two steps. Within a step the bench makes a new instance itself, when it resumes.
        if self._how.new_instances and self._training.steps and self._step.end:
            self._inner = self._method = self._how.make()
        self._state_before = copy_state(state)
        with self._calling("load_state_dict"):
            self._inner.load_state_dict(state)

    def _begin(self, context: StepContext) -> None:
        """Record a new step, unless it is recorded already: exemplars may be chosen before, or it is resumed."""
        if self._training.steps and self._step.context.step == context.step:
            return
        self._previous_before = snapshots.copied(snapshots.of_frozen(context.previous))
        kept = context
        if self._how.keep_models:
            model, previous = copy.deepcopy((context.model, context.previous))
            kept = replace(context, model=model, previous=previous)
        self._training.steps.append(RecordedStep(kept, self._state_before))
        self._training.location = self._training.at(self._step)

    def select_exemplars(
        self, images: Iterable[Batch], kept: Sequence[Exemplar], context: StepContext
    ) -> list[Exemplar]:
        self._begin(context)
        step = self._step
        step.selecting = True
        with self._calling("select_exemplars", context, buffers=True):
            chosen = self._inner.select_exemplars(images, kept, context)
        step.selecting, step.exemplars = False, chosen
        step.shown = shown_labels(self._inner.memory(), chosen, context)
        return chosen

    def initialise(self, context: StepContext) -> None:
        self._begin(context)
        with self._calling("initialise"):
            self._inner.initialise(context)
        if self._how.initialised is not None:
            self._how.initialised(context)
        self._step.initial = copy_state(context.model.state_dict())

    def before_training(self, context: StepContext, batches: Iterable[Batch]) -> None:
        self._step.passes[context.phase] = context.batches
        with self._calling("before_training", context, buffers=True):
            self._inner.before_training(context, batches)

    def prepare(self, batch: Batch, context: StepContext) -> Batch:
        loaded = copy_batch(batch)
        self._loaded.append(loaded)
        with self._calling("prepare", context):
            prepared = self._inner.prepare(batch, context)
        fault = prepare_fault(loaded, batch, prepared)
        if fault is not None and fault not in self._step.faults:
            self._step.faults.append(fault)
        return prepared

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        self._record_gradients(context)
        step = self._step
        before = snapshots.copied(self._seen(batch, previous, context))
        if context.phase not in step.state_at:
            kept = {name: tensor for name, tensor in before.items() if name.startswith(STATE)}
            step.state_at[context.phase] = {
                name.removeprefix(STATE): tensor for name, tensor in kept.items() if isinstance(tensor, Tensor)
            }
        self._training.location = self._training.at(step, len(step.calls))
        noted = None if previous is None else NotedOutput.of(previous)
        with self._calling("losses"), _watched(context.previous) as ran:
            terms: Any = self._inner.losses(batch, output, noted, context)
        tensors = {n: t for n, t in terms.items() if isinstance(t, Tensor)} if isinstance(terms, dict) else {}
        call = RecordedCall(
            batch=self._loaded.pop(0),
            phase=context.phase,
            terms={**terms, **copy_state(tensors)} if isinstance(terms, dict) else terms,
            differentiable=any(term.requires_grad for term in tensors.values()),
            changed=changes(before, self._seen(batch, previous, context)),
            ran_previous=bool(ran),
            read_previous=bool(ran) or (noted is not None and noted.was_read),
        )
        step.calls.append(call)
        return cast(dict[str, Tensor], terms)

    def _seen(self, batch: Batch, previous: Output | None, context: StepContext) -> Snapshot:
        """Return what a call of ``losses`` might change; buffers are left out, as any forward pass may change them."""
        state: Any = self.state_dict()
        kept = {f"{STATE}{n}": t for n, t in state.items() if isinstance(t, Tensor)} if isinstance(state, dict) else {}
        model = {f"model.{name}": value for name, value in snapshots.of_model(context.model).items()}
        return {**snapshots.of_call(batch, previous), **kept, **model}

    def _record_gradients(self, context: StepContext) -> None:
        """Record the gradients that the last iteration has left in the model."""
        if self._step.calls and self._step.calls[-1].gradients is None:
            found = {name: p.grad for name, p in context.model.named_parameters() if p.grad is not None}
            self._step.calls[-1].gradients = {name: bool(grad.isfinite().all()) for name, grad in found.items()}

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        with self._calling("counts"):
            return self._inner.counts(batch, previous, context)

    def after_gradients(self, gradients: Mapping[str, Tensor], context: StepContext) -> None:
        with self._calling("after_gradients", context):
            self._inner.after_gradients(gradients, context)

    def after_training(self, context: StepContext) -> None:
        self._record_gradients(context)
        self._training.location = self._training.at(self._step)
        with self._calling("after_training"):
            self._inner.after_training(context)
        self._step.ended = context.phase
        if context.phase == self.phases(context.setting, context.step)[-1]:
            self._step.end = copy_state(context.model.state_dict())
        self._step.previous_changed = changes(self._previous_before, snapshots.of_frozen(context.previous))

    def state_dict(self) -> dict[str, Tensor]:
        with self._calling("state_dict"):
            state = self._inner.state_dict()
        if self._training.steps and self._step.end:
            self._step.state_fault = state_fault(state)
            self._step.state_after = {} if self._step.state_fault else copy_state(state)
        return state


@contextmanager
def _watched(model: IncrementalModel | None) -> Iterator[list[bool]]:
    """Give a list that is filled when the model runs."""
    ran: list[bool] = []
    if model is None:
        yield ran
        return
    handle = model.register_forward_pre_hook(lambda *_: ran.append(True))
    try:
        yield ran
    finally:
        handle.remove()
