"""A method that passes every call on to another one and records what the call did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from torch import Tensor, nn

from cispbench.harness.contract.recorded import (
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
from cispbench.harness.method import Batch, Group, Method, Output, StepContext
from cispbench.harness.training.shared_base import SharedBase
from cispbench.harness.wrapper import overrides
from cispbench.splits.settings import Setting

FACTS = (
    "name",
    "version",
    "joint",
    "Options",
    "needs",
    "reads_previous",
    "micro_batches",
    "devices",
)  # class attributes that the harness reads


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
    ``initialised`` is called after `initialise`, and may change the models. A base that methods share is recorded as
    the harness trains it.
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

    @property
    def _step(self) -> RecordedStep:
        return self._training.steps[-1]

    @contextmanager
    def _calling(self, call: str) -> Iterator[None]:
        self._training.calling = call
        yield
        # Not reached when the call raises: a failed training then says which call failed.
        self._training.calling = None

    def unsupported(self, setting: Setting, model: str) -> str | None:
        return self._method.unsupported(setting, model)

    def layout(self, setting: Setting, step: int) -> tuple[Group, ...]:
        return self._inner.layout(setting, step)

    def phases(self, setting: Setting, step: int) -> tuple[str, ...]:
        return self._inner.phases(setting, step)

    def scores(self, output: Output) -> Tensor:
        return self._method.scores(output)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._inner = self._method
        # Between two steps. Within a step the bench makes a new instance itself, when it resumes.
        if self._how.new_instances and self._training.steps and self._step.end:
            self._inner = self._method = self._how.make()
        self._state_before = copy_state(state)
        with self._calling("load_state_dict"):
            self._inner.load_state_dict(state)

    def initialise(self, context: StepContext) -> None:
        self._previous_before = _copied(_snapshot_of_previous(context.previous))
        kept = context
        if self._how.keep_models:
            model, previous = copy.deepcopy((context.model, context.previous))
            kept = replace(context, model=model, previous=previous)
        # A step that is resumed after an interruption is recorded as one step.
        if not self._training.steps or self._step.context.step != context.step:
            self._training.steps.append(RecordedStep(kept, self._state_before))
        self._training.location = self._training.at(self._step)
        with self._calling("initialise"):
            self._inner.initialise(context)
        if self._how.initialised is not None:
            self._how.initialised(context)
        self._step.initial = copy_state(context.model.state_dict())

    def before_training(self, context: StepContext, batches: Iterable[Batch]) -> None:
        with self._calling("before_training"):
            self._inner.before_training(context, self._recorded(batches))

    def _recorded(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._step.measured.append(copy_batch(batch))
            yield batch

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        self._record_gradients(context)
        step, original = self._step, copy_batch(batch)
        before = _copied(self._seen(batch, previous, context))
        self._training.location = self._training.at(step, len(step.calls))
        with self._calling("losses"):
            terms: Any = self._inner.losses(batch, output, previous, context)
        tensors = {n: t for n, t in terms.items() if isinstance(t, Tensor)} if isinstance(terms, dict) else {}
        call = RecordedCall(
            batch=original,
            terms={**terms, **copy_state(tensors)} if isinstance(terms, dict) else terms,
            differentiable=any(term.requires_grad for term in tensors.values()),
            changed=changes(before, self._seen(batch, previous, context)),
        )
        step.calls.append(call)
        return cast(dict[str, Tensor], terms)

    def _seen(self, batch: Batch, previous: Output | None, context: StepContext) -> Snapshot:
        """Return what a call of ``losses`` might change; buffers are left out, as any forward pass may change them."""
        found = {"batch.images": batch.images, "batch.target": batch.target}
        for part in fields(Output) if previous is not None else ():
            value = getattr(previous, part.name)
            found |= {f"previous.{part.name}{index}": tensor for index, tensor in _tensors_in(value).items()}
        state: Any = self.state_dict()
        kept = {f"state.{n}": t for n, t in state.items() if isinstance(t, Tensor)} if isinstance(state, dict) else {}
        model = {f"model.{name}": value for name, value in _snapshot_of_model(context.model).items()}
        return {**found, **_flags(found), **kept, **model}

    def _record_gradients(self, context: StepContext) -> None:
        """Record the gradients that the last iteration has left in the model."""
        if self._step.calls and self._step.calls[-1].gradients is None:
            found = {name: p.grad for name, p in context.model.named_parameters() if p.grad is not None}
            self._step.calls[-1].gradients = {name: bool(grad.isfinite().all()) for name, grad in found.items()}

    def prepare(self, batch: Batch, context: StepContext) -> Batch:
        with self._calling("prepare"):
            return self._inner.prepare(batch, context)

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        with self._calling("counts"):
            return self._inner.counts(batch, previous, context)

    def after_gradients(self, gradients: Mapping[str, Tensor], context: StepContext) -> None:
        with self._calling("after_gradients"):
            self._inner.after_gradients(gradients, context)

    def after_training(self, context: StepContext) -> None:
        self._record_gradients(context)
        self._training.location = self._training.at(self._step)
        with self._calling("after_training"):
            self._inner.after_training(context)
        self._step.end = copy_state(context.model.state_dict())
        self._step.previous_changed = changes(self._previous_before, _snapshot_of_previous(context.previous))

    def state_dict(self) -> dict[str, Tensor]:
        with self._calling("state_dict"):
            state = self._inner.state_dict()
        if self._training.steps and self._step.end:
            self._step.state_fault = state_fault(state)
            self._step.state_after = {} if self._step.state_fault else copy_state(state)
        return state


def _tensors_in(value: Tensor | tuple[Tensor, ...] | Mapping[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Return the tensors of a field of ``Output`` by their place in it."""
    if isinstance(value, Tensor):
        return {"": value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {f"[{place}]{index}": tensor for place, item in items for index, tensor in _tensors_in(item).items()}


def _snapshot_of_model(model: nn.Module) -> Snapshot:
    """Return parameters, their gradients and the training mode by name; nothing is copied."""
    parameters = dict(model.named_parameters())
    gradients = {f"{name}.grad": p.grad for name, p in parameters.items() if p.grad is not None}
    return {**parameters, **gradients, "training": model.training}


def _snapshot_of_previous(model: nn.Module | None) -> Snapshot:
    if model is None:
        return {}
    return {**_snapshot_of_model(model), **dict(model.named_buffers()), **_flags(dict(model.named_parameters()))}


def _flags(tensors: Mapping[str, Tensor]) -> Snapshot:
    return {f"{name}.requires_grad": tensor.requires_grad for name, tensor in tensors.items()}


def _copied(snapshot: Snapshot) -> Snapshot:
    return {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in snapshot.items()}
