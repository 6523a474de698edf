"""A method that passes every call on to another one and records what the call did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

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
from cispbench.harness.method import VOID, Batch, Method, Output, StepContext
from cispbench.splits.settings import Setting

FACTS = ("name", "version", "joint", "Options")  # class attributes that the harness reads


def recorder(
    make: Callable[[], Method], training: RecordedTraining, *, keep_models: bool = False, new_instances: bool = False
) -> Method:
    """Return a method that does what an instance from ``make`` does, and records it in ``training``.

    ``keep_models``: the models are copied at the start of each step, so that the step can be trained again.
    ``new_instances``: each step has a new instance, which knows nothing but the state that the step before stored.
    """
    inner = make()
    cls = type("Recorder", (_Recorder,), {name: getattr(inner, name) for name in FACTS})
    recording: Method = cls(inner, training, keep_models, make if new_instances else None)
    return recording


class _Recorder(Method):
    name = "recorder"
    shared_base = False  # the rule shared-base judges the base; a run would end at a wrong one, and no rule be judged

    def __init__(
        self, inner: Method, training: RecordedTraining, keep_models: bool, renew: Callable[[], Method] | None
    ) -> None:
        super().__init__(inner.options)
        self._inner, self._training, self._keep_models, self._renew = inner, training, keep_models, renew
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
        return self._inner.unsupported(setting, model)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        # Between two steps. Within a step the bench makes a new instance itself, when it resumes.
        if self._renew is not None and self._training.steps and self._step.end:
            self._inner = self._renew()
        self._state_before = copy_state(state)
        with self._calling("load_state_dict"):
            self._inner.load_state_dict(state)

    def initialise(self, context: StepContext) -> None:
        self._previous_before = _copied(_snapshot_of_previous(context.previous))
        kept = context
        if self._keep_models:
            model, previous = copy.deepcopy((context.model, context.previous))
            kept = replace(context, model=model, previous=previous)
        # A step that is resumed after an interruption is recorded as one step.
        if not self._training.steps or self._step.context.step != context.step:
            self._training.steps.append(RecordedStep(kept, self._state_before))
        self._training.location = self._training.at(self._step)
        with self._calling("initialise"):
            self._inner.initialise(context)
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
            plain=_plain_cross_entropy(output, original),
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

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        with self._calling("counts"):
            return self._inner.counts(batch, previous, context)

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


def _plain_cross_entropy(output: Output, batch: Batch) -> float:
    with torch.no_grad():
        logits = output.logits.detach().float()
        total = functional.cross_entropy(logits, batch.target, ignore_index=VOID, reduction="sum")
    return float(total / (batch.target != VOID).sum().clamp(min=1))
