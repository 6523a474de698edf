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
)
from cispbench.harness.contract.restored import CPU, SavedCall, attempt, saved, state_fault
from cispbench.harness.machine.seeds import random_states
from cispbench.harness.method import VOID, Batch, Method, Output, StepContext
from cispbench.splits.settings import Setting

FACTS = ("name", "version", "joint", "shared_base", "Options")  # class attributes that the harness reads


def recorder(
    make: Callable[[], Method], training: RecordedTraining, *, repeat_calls: bool = False, new_instances: bool = False
) -> Method:
    """Return a method that does what an instance from ``make`` does, and records it in ``training``.

    ``repeat_calls``: calls of ``losses`` are repeated on restored copies of the method, and the models are copied at
    the start of each step, so that the step can be trained again. ``new_instances``: from step 1 on, each step has a
    new instance, which knows nothing but the state that the step before stored, as after an interruption.
    """
    inner = make()
    cls = type("Recorder", (_Recorder,), {name: getattr(inner, name) for name in FACTS})
    recording: Method = cls(inner, make, training, repeat_calls, new_instances)
    return recording


class _Recorder(Method):
    name = "recorder"

    def __init__(
        self, inner: Method, make: Callable[[], Method], training: RecordedTraining, repeat_calls: bool,
        new_instances: bool,
    ) -> None:  # fmt: skip
        super().__init__(inner.options)
        self._inner, self._make, self._training = inner, make, training
        self._repeat_calls, self._new_instances = repeat_calls, new_instances
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
        # The harness calls this before each step but the first.
        if self._new_instances:
            self._inner = self._make()
        self._state_before = copy_state(state)
        with self._calling("load_state_dict"):
            self._inner.load_state_dict(state)

    def initialise(self, context: StepContext) -> None:
        self._previous_before = _copied(_seen_of_model(context.previous))
        kept = context
        if self._repeat_calls:
            model, previous = copy.deepcopy((context.model, context.previous))
            kept = replace(context, model=model, previous=previous)
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
        # Saved before the call, which may change the method's state, the RNG state and its arguments.
        saved_call = self._save_call(original, output, previous, context)
        before = _copied(_seen_by_losses(batch, previous, context.model))
        self._training.location = self._training.at(step, len(step.calls))
        with self._calling("losses"):
            terms: Any = self._inner.losses(batch, output, previous, context)
        tensors = {n: t for n, t in terms.items() if isinstance(t, Tensor)} if isinstance(terms, dict) else {}
        call = RecordedCall(
            batch=original,
            terms={**terms, **copy_state(tensors)} if isinstance(terms, dict) else terms,
            differentiable=any(term.requires_grad for term in tensors.values()),
            changed=changes(before, _seen_by_losses(batch, previous, context.model)),
            plain=_plain_cross_entropy(output, original),
        )
        step.calls.append(call)
        if isinstance(saved_call, SavedCall):
            call.repeated = attempt(saved_call.terms)
            if len(step.calls) == 2:  # once a step is enough
                call.parts = attempt(saved_call.parts)
        else:
            call.repeated = saved_call
        return cast(dict[str, Tensor], terms)

    def _save_call(
        self, batch: Batch, output: Output, previous: Output | None, context: StepContext
    ) -> SavedCall | str | None:
        """Return what repeats this call; None for the first call of a step, where many a loss is still 0."""
        if not self._repeat_calls or not self._step.calls:
            return None
        state = attempt(lambda: saved(self._inner.state_dict()))
        if isinstance(state, str):
            return state
        arguments = (batch, output, copy.deepcopy(previous))
        return SavedCall(self._make, self._step, context, *arguments, state, random_states(CPU))

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
        self._step.previous_changed = changes(self._previous_before, _seen_of_model(context.previous))

    def state_dict(self) -> dict[str, Tensor]:
        with self._calling("state_dict"):
            state = self._inner.state_dict()
        if self._training.steps and self._step.end:
            self._step.state_fault = state_fault(state)
            self._step.state_after = {} if self._step.state_fault else copy_state(state)
        return state


def _seen(tensors: Mapping[str, Tensor]) -> Snapshot:
    """Return tensors by name, with their gradients and requires_grad flags; nothing is copied."""
    flags = {f"{name}.requires_grad": tensor.requires_grad for name, tensor in tensors.items()}
    gradients = {f"{name}.grad": t.grad for name, t in tensors.items() if t.is_leaf and t.grad is not None}
    return {**tensors, **gradients, **flags}


def _seen_of_model(model: nn.Module | None) -> Snapshot:
    if model is None:
        return {}
    return {**_seen({**dict(model.named_parameters()), **dict(model.named_buffers())}), "training": model.training}


def _seen_by_losses(batch: Batch, previous: Output | None, model: nn.Module) -> Snapshot:
    """Return all that ``losses`` must not change: buffers are not among it, as any forward pass may change them."""
    found = {"batch.images": batch.images, "batch.target": batch.target}
    for part in fields(Output) if previous is not None else ():
        value = getattr(previous, part.name)
        tensors = {"": value} if isinstance(value, Tensor) else {f"[{i}]": item for i, item in enumerate(value)}
        found |= {f"previous.{part.name}{index}": tensor for index, tensor in tensors.items()}
    parameters = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    return {**_seen({**found, **parameters}), "model.training": model.training}


def _copied(snapshot: Snapshot) -> Snapshot:
    return {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in snapshot.items()}


def _plain_cross_entropy(output: Output, batch: Batch) -> float:
    with torch.no_grad():
        logits = output.logits.detach().float()
        total = functional.cross_entropy(logits, batch.target, ignore_index=VOID, reduction="sum")
    return float(total / (batch.target != VOID).sum().clamp(min=1))
