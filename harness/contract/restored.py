"""Repeat a call of ``losses`` on a copy of the method that is restored from its state, as after an interruption.

Two rules need this. ``state-exact`` repeats a call as it was: a copy that returns other terms has lost something.
``halves-add-up`` repeats a call on two parts of its batch and puts the terms together, as the training does with
micro-batches and on several devices. The method itself is never asked, because each call may change its state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from cispbench.harness.contract.recorded import (
    Numbers,
    PartsResult,
    RecordedStep,
    State,
    copy_batch,
    copy_state,
    describe,
)
from cispbench.harness.machine.seeds import random_states, restore_random_states, seed_everything
from cispbench.harness.method import VOID, Batch, Method, Output, StepContext

Answer = TypeVar("Answer")
CPU = torch.device("cpu")
IMAGES = ""  # stands for the number of images among the counts of a part
Part = tuple[Numbers, Numbers]  # the terms of a part of a batch, and its counts
WITHOUT_IMAGES = ("class_tokens",)  # the fields of an Output whose first dimension is not the batch


@dataclass(frozen=True)
class SavedCall:
    """All that is needed to repeat a call of ``losses``: its arguments, the RNG state, and the method's saved state."""

    make: Callable[[], Method]
    step: RecordedStep
    context: StepContext
    batch: Batch
    output: Output
    previous: Output | None
    state: bytes
    rng: dict[str, Any]

    def terms(self) -> State:
        """Return the terms of a restored copy, for the same arguments and the same RNG state."""
        method, context = self._restored()
        return self._losses(method, context)

    def parts(self) -> PartsResult:
        """Return the terms of the batch as a whole and from two parts, the first of which is mostly void."""
        size = len(self.batch.ids)
        target = self.batch.target.clone()
        # With equal parts, a mean over labelled pixels could be weighted like a mean over images, unnoticed.
        target[: size // 2, : 3 * target.shape[1] // 4] = VOID
        call = replace(self, batch=replace(self.batch, target=target))
        whole, _ = call._part(0, size)
        halves = [call._part(0, size // 2), call._part(size // 2, size)]
        seed_everything(1)
        again, _ = replace(call, rng=random_states(CPU))._part(0, size)
        return PartsResult(whole, _combined(halves), random=again != whole)

    def _part(self, start: int, end: int) -> Part:
        """Return terms and counts of some images of the batch."""
        images = slice(start, end)
        batch = Batch(self.batch.images[images], self.batch.target[images], self.batch.ids[images])
        previous = None if self.previous is None else _sliced(self.previous, images)
        # The sliced output keeps the network's graph: a method may call torch.autograd.grad.
        call = replace(self, batch=batch, output=_sliced(self.output, images), previous=previous)
        method, context = call._restored()
        terms, counts = call._losses(method, context), method.counts(batch, previous, context)
        return _numbers(terms), {IMAGES: float(len(batch.ids)), **_numbers(counts)}

    def _restored(self) -> tuple[Method, StepContext]:
        """Make a new instance and call on it what a resumed process calls; return it with a model of its own."""
        model = copy.deepcopy(self.step.context.model)
        context = replace(self.context, model=model)
        method = self.make()
        if self.step.state_before is not None:
            method.load_state_dict(copy_state(self.step.state_before))
        method.initialise(context)
        method.load_state_dict(load(self.state))
        model.load_state_dict(self.context.model.state_dict())
        model.train(self.context.model.training)
        return method, context

    def _losses(self, method: Method, context: StepContext) -> State:
        restore_random_states(self.rng, CPU)
        terms = method.losses(copy_batch(self.batch), self.output, copy.deepcopy(self.previous), context)
        return copy_state(terms)


def state_fault(state: Any) -> str | None:
    """Return why the step store cannot hold what ``state_dict`` returned, None if it can."""
    if not isinstance(state, dict):
        return f"it is a {type(state).__name__}"
    for name, value in state.items():
        if not isinstance(name, str):
            return f"the key {name!r} is no string"
        if not isinstance(value, Tensor):
            return f"{name} is a {type(value).__name__}"
    try:
        saved(state)
    except Exception as error:  # noqa: BLE001 (whatever the library raises for this state)
        return f"it cannot be written: {describe(error)}"
    return None


def saved(state: Mapping[str, Tensor]) -> bytes:
    """Return a method's state as the step store writes it. Raises various errors for what is no state."""
    return save({name: tensor.cpu().contiguous() for name, tensor in state.items()})


def attempt(action: Callable[[], Answer]) -> Answer | str:
    """Return what the action returns, or its error as text; the RNG state is afterwards what it was before."""
    before = random_states(CPU)
    try:
        return action()
    except Exception as error:  # noqa: BLE001 (whatever a plug-in raises is a violation)
        return describe(error)
    finally:
        restore_random_states(before, CPU)


def _sliced(output: Output, images: slice) -> Output:
    changes: dict[str, Any] = {}
    for part in fields(Output):
        value = getattr(output, part.name)
        if part.name not in WITHOUT_IMAGES:
            changes[part.name] = value[images] if isinstance(value, Tensor) else tuple(item[images] for item in value)
    return replace(output, **changes)


def _combined(parts: list[Part]) -> Numbers:
    """Return the mean of each term over the parts, weighted by the term's count, or else by the number of images."""
    sums: Numbers = {}
    for name in dict.fromkeys(name for terms, _ in parts for name in terms):
        weights = [counts.get(name, counts[IMAGES]) for _, counts in parts]
        total = sum(weights)
        pairs = zip(parts, weights, strict=True)
        sums[name] = sum(terms.get(name, 0.0) * weight / total for (terms, _), weight in pairs) if total > 0 else 0.0
    return sums


def _numbers(values: Mapping[str, Tensor | int]) -> Numbers:
    return {name: float(value) for name, value in values.items()}
