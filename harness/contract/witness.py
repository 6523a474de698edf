"""A method under watch: every call goes through to it, and what the call did is noted in a trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cispbench.harness.contract.halves import halved
from cispbench.harness.contract.shadow import CPU, Shadow, file_error
from cispbench.harness.contract.sources import Lens
from cispbench.harness.contract.trace import (
    LOOP,
    LossCall,
    State,
    StepTrace,
    Trace,
    copy_of,
    differing,
    gradients_of,
    state_of,
    tensors_of,
)
from cispbench.harness.contract.verdict import Place
from cispbench.harness.machine.seeds import random_states
from cispbench.harness.method import VOID, Batch, Method, Output, StepContext
from cispbench.harness.models.interface import IncrementalModel
from cispbench.splits.settings import Setting

FACTS = ("name", "version", "joint", "shared_base", "Options")


def watched(inner: Method, trace: Trace, lens: Lens, fresh: Callable[[], Method] | None = None) -> Method:
    """Return a method that acts as ``inner`` does and notes in ``trace`` all that the rules ask for.

    With ``fresh``, which makes another instance, one is restored from the state in the middle of each step and asked
    for the same losses from there on.
    """
    method: Method = _as(_Watched, inner)(inner, trace, lens, fresh)
    return method


def followed(inner: Method, trace: Trace, lens: Lens) -> Method:
    """Return a method that acts as ``inner`` does and notes in ``trace`` where the training stands, nothing else."""
    method: Method = _as(_Followed, inner)(inner, trace, lens)
    return method


def _as(cls: type[Method], inner: Method) -> Any:
    return type(cls.__name__, (cls,), {name: getattr(inner, name) for name in FACTS})


class _Followed(Method):
    """Hands every call on, and tells trace and lens where the training stands."""

    name = "followed"

    def __init__(self, inner: Method, trace: Trace, lens: Lens) -> None:
        super().__init__(inner.options)
        self._inner, self._trace, self._lens = inner, trace, lens
        self._iteration = 0

    @contextmanager
    def _calling(self, call: str) -> Iterator[None]:
        # Left as it is when the call raises: that is how a training that stops knows who stopped it.
        self._trace.failing = call
        yield
        self._trace.failing = LOOP

    def _stands(self, context: StepContext, iteration: int | None = None) -> None:
        self._trace.at = Place(self._trace.model, self._trace.setting, context.step, iteration)

    def unsupported(self, setting: Setting, model: str) -> str | None:
        return self._inner.unsupported(setting, model)

    def initialise(self, context: StepContext) -> None:
        self._iteration = 0
        self._stands(context)
        self._lens.start(context.setting, context.step)
        with self._calling("initialise"):
            self._inner.initialise(context)

    def before_training(self, context: StepContext, batches: Iterable[Batch]) -> None:
        with self._calling("before_training"):
            self._inner.before_training(context, batches)

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        self._stands(context, self._iteration)
        self._iteration += 1
        with self._calling("losses"):
            return self._inner.losses(batch, output, previous, context)

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        with self._calling("counts"):
            return self._inner.counts(batch, previous, context)

    def after_training(self, context: StepContext) -> None:
        self._stands(context)
        with self._calling("after_training"):
            self._inner.after_training(context)
        self._lens.end()

    def state_dict(self) -> dict[str, Tensor]:
        with self._calling("state_dict"):
            return self._inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        with self._calling("load_state_dict"):
            self._inner.load_state_dict(state)


class _Watched(_Followed):
    """Notes what every call was given, returned and changed."""

    def __init__(self, inner: Method, trace: Trace, lens: Lens, fresh: Callable[[], Method] | None) -> None:
        super().__init__(inner, trace, lens)
        self._fresh = fresh
        self._kept: State | None = None
        self._shadow: Shadow | None = None
        self._previous = _Look.at(None)

    @property
    def _step(self) -> StepTrace:
        return self._trace.steps[-1]

    def initialise(self, context: StepContext) -> None:
        self._shadow = None
        # Only a training that is taken up again or restored needs copies, which take longer than an iteration.
        kept = (context.model, context.previous)
        start, previous = copy.deepcopy(kept) if self._fresh is not None else kept
        self._previous = _Look.at(context.previous)
        counts = (context.step, context.old_classes, context.new_classes)
        self._trace.steps.append(StepTrace(*counts, start, previous, self._kept))
        super().initialise(context)
        self._step.initial = state_of(context.model)
        self._step.initial_classes = context.model.num_classes

    def before_training(self, context: StepContext, batches: Iterable[Batch]) -> None:
        super().before_training(context, self._noted(batches))

    def _noted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._step.measured.append(_copy(batch))
            yield batch

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        self._end_iteration(context)
        model, lent, kept_batch = context.model, tensors_of(batch, previous), _copy(batch)
        kept_previous = copy.deepcopy(previous) if self._shadow is not None else None
        before, weights, gradients = copy_of(lent), state_of(model), gradients_of(model)
        mode, chance = model.training, random_states(CPU)
        terms = super().losses(batch, output, previous, context)
        parameters = {name for name, _ in model.named_parameters()}
        changed = [name for name in differing(weights, model.state_dict()) if name in parameters]
        call = LossCall(
            batch=kept_batch,
            terms=_noted_terms(terms),
            attached=frozenset(name for name, term in _tensors(terms).items() if term.requires_grad),
            changed=(*differing(before, tensors_of(batch, previous)), *(f"model.{name}" for name in changed)),
            left_gradients=differing(gradients, gradients_of(model)),
            switched_mode=model.training != mode,
            with_gradient=tuple(name for name, tensor in lent.items() if tensor.requires_grad),
            plain=_plain(output, kept_batch),
        )
        self._step.calls.append(call)
        if self._shadow is not None:
            call.retold = self._shadow.losses(kept_batch, output, kept_previous, context, chance)
            if self._fresh is not None and len(self._step.calls) == 2:  # once a step, when no term is 0 any more
                parts = (_copy(kept_batch), output, kept_previous)
                call.halved = halved(self._fresh, self._inner, self._step, *parts, context)
        elif self._fresh is not None:
            self._shadow = Shadow(self._fresh, self._inner, self._step, context)
        return terms

    def _end_iteration(self, context: StepContext) -> None:
        """Note the gradients that the last iteration has left in the model."""
        if self._step.calls and self._step.calls[-1].gradients is None:
            found = gradients_of(context.model)
            self._step.calls[-1].gradients = len(found)
            self._step.calls[-1].bad_gradients = tuple(n for n, grad in found.items() if not grad.isfinite().all())

    def after_training(self, context: StepContext) -> None:
        self._end_iteration(context)
        super().after_training(context)
        step, self._shadow = self._step, None
        step.end = state_of(context.model)
        step.touched = self._lens.taken_off()
        step.previous_changed = self._previous.changes(_Look.at(context.previous))

    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict()
        if self._trace.steps and self._step.end is not None:
            self._step.kept_after, self._step.kept_error = state, file_error(state)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._kept = copy_of(state)
        super().load_state_dict(state)


@dataclass(frozen=True)
class _Look:
    """A look at the previous model: its weights and buffers, its mode, and whether gradients are asked for or there."""

    state: State
    training: bool
    asked: tuple[bool, ...]
    gradients: bool

    @classmethod
    def at(cls, model: IncrementalModel | None) -> _Look:
        if model is None:
            return cls({}, False, (), False)
        asked = tuple(parameter.requires_grad for parameter in model.parameters())
        return cls(state_of(model), model.training, asked, bool(gradients_of(model)))

    def changes(self, later: _Look) -> tuple[str, ...]:
        """Return what a later look finds changed."""
        flags = {
            "its training mode": later.training != self.training,
            "the need of gradients": later.asked != self.asked,
            "gradients": later.gradients,
        }
        return (*differing(self.state, later.state), *(name for name, flag in flags.items() if flag))


def _tensors(terms: Any) -> dict[str, Tensor]:
    return {n: t for n, t in terms.items() if isinstance(t, Tensor)} if isinstance(terms, dict) else {}


def _noted_terms(terms: Any) -> Any:
    return {**terms, **copy_of(_tensors(terms))} if isinstance(terms, dict) else terms


def _copy(batch: Batch) -> Batch:
    return Batch(batch.images.clone(), batch.target.clone(), batch.ids)


def _plain(output: Output, batch: Batch) -> float:
    with torch.no_grad():
        logits = output.logits.detach().float()
        total = functional.cross_entropy(logits, batch.target, ignore_index=VOID, reduction="sum")
    return float(total / (batch.target != VOID).sum().clamp(min=1))
