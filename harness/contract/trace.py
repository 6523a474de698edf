"""What one watched training has shown: facts alone, copied at the time; the rules judge them afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from cispbench.harness.contract.verdict import Place
from cispbench.harness.method import Batch, Output
from cispbench.harness.models.interface import IncrementalModel

State = dict[str, Tensor]
LOOP = "the training loop"


@dataclass(frozen=True)
class Halved:
    """The terms of a batch as a whole, put together from its halves, and as a whole by another lot."""

    whole: dict[str, float]
    combined: dict[str, float]
    redrawn: dict[str, float]


@dataclass
class LossCall:
    """One call of ``losses``, and the gradients that the loop made of it.

    ``terms`` is what came back, its tensors copied; ``attached`` names the terms that carry gradients. ``changed``
    names tensors of the batch, of the previous model's output and of the model that the call changed; ``plain`` is
    the cross-entropy over non-void pixels. ``retold``: the terms of a method restored from its state, or its error.
    ``halved``: the terms put together from the halves of the batch, or an error; None where that was not asked.
    ``gradients`` counts the parameters that received one, ``bad_gradients`` names those with a non-finite one.
    """

    batch: Batch
    terms: Any
    attached: frozenset[str]
    changed: tuple[str, ...]
    left_gradients: tuple[str, ...]
    switched_mode: bool
    with_gradient: tuple[str, ...]
    plain: float
    retold: dict[str, Tensor] | str | None = None
    halved: Halved | str | None = None
    gradients: int | None = None
    bad_gradients: tuple[str, ...] = ()


@dataclass
class StepTrace:
    """One step: its models before and after, the calls of ``losses`` in between, and what the method kept.

    ``start`` is the grown model before ``initialise`` and ``previous`` the one of the step before, copied if the
    step is to be taken up again. ``initial`` is the model's state after ``initialise``, ``end`` that after the
    training. ``previous_changed`` names what differs of the previous model at the end. ``kept_before`` and
    ``kept_after``: the method's state.
    """

    step: int
    old_classes: int
    new_classes: int
    start: IncrementalModel
    previous: IncrementalModel | None
    kept_before: State | None
    initial: State = field(default_factory=dict)
    initial_classes: int = 0
    measured: list[Batch] = field(default_factory=list)
    calls: list[LossCall] = field(default_factory=list)
    touched: tuple[str, ...] = ()
    previous_changed: tuple[str, ...] = ()
    end: State | None = None
    kept_after: Any = None
    kept_error: str | None = None


@dataclass(frozen=True)
class Stop:
    """Why a training ended before its end: the call in which it did, and the error."""

    call: str
    error: Exception

    def __str__(self) -> str:
        text = str(self.error).partition("\n")[0]
        return f"{self.call} raised {type(self.error).__name__}: {text}" if text else repr(self.error)


@dataclass
class Trace:
    """A watched training, up to its end or to ``stop``; ``manifests`` are those of its steps as published.

    ``failing`` names the call of the method that is under way, ``at`` where the training stands.
    """

    model: str
    setting: str
    steps: list[StepTrace] = field(default_factory=list)
    manifests: list[dict[str, Any]] = field(default_factory=list)
    stop: Stop | None = None
    failing: str = LOOP
    at: Place | None = None

    def place(self, step: StepTrace | None = None, iteration: int | None = None, term: str | None = None) -> Place:
        """Return where in this training something is."""
        return Place(self.model, self.setting, None if step is None else step.step, iteration, term)

    def stands(self) -> Place:
        """Return where the training stands, or where it stopped."""
        return self.at or self.place()

    def calls(self) -> Iterator[tuple[StepTrace, int, LossCall]]:
        """Yield every call of ``losses`` with its step and its iteration."""
        for step in self.steps:
            for iteration, call in enumerate(step.calls):
                yield step, iteration, call


def copy_of(state: Mapping[str, Tensor]) -> State:
    """Return copies of all tensors."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def state_of(model: nn.Module) -> State:
    """Return copies of a model's parameters and buffers."""
    return copy_of(model.state_dict())


def gradients_of(model: nn.Module) -> State:
    """Return copies of the gradients that are there."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return copy_of({name: grad for name, grad in found.items() if grad is not None})


def tensors_of(batch: Batch, previous: Output | None) -> State:
    """Return the tensors that ``losses`` is lent, by name (not copied)."""
    found = {"batch.images": batch.images, "batch.target": batch.target}
    for part in fields(Output) if previous is not None else ():
        value = getattr(previous, part.name)
        tensors = {"": value} if isinstance(value, Tensor) else {f"[{i}]": item for i, item in enumerate(value)}
        found |= {f"previous.{part.name}{place}": tensor for place, tensor in tensors.items()}
    return found


def differing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the tensors that are new, gone or not the same bit for bit."""
    names = dict.fromkeys([*before, *after])
    return tuple(n for n in names if n not in before or n not in after or not _same(before[n], after[n]))


def _same(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors are the same; what is no number is the same as what is none."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def listed(names: tuple[str, ...]) -> str:
    """Write names in a sentence: the first three, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
