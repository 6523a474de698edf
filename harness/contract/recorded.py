"""What one training did: facts that ``recorder`` copies at the time, and that the rules examine afterwards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from cispbench.harness.contract.verdict import Location
from cispbench.harness.method import Batch, Exemplar, Output, StepContext
from cispbench.splits.errors import describe_error

State = dict[str, Tensor]
Snapshot = Mapping[str, Tensor | bool]
Numbers = dict[str, float]


class NotedOutput(Output):
    """An output that notes whether anything of it is read: ``was_read``."""

    was_read = False

    @classmethod
    def of(cls, output: Output) -> NotedOutput:
        """Return an output with the fields of another."""
        return cls(**{part.name: getattr(output, part.name) for part in fields(output)})

    def __getattribute__(self, name: str) -> Any:
        if name in Output.__dataclass_fields__:
            object.__setattr__(self, "was_read", True)
        return object.__getattribute__(self, name)


@dataclass
class RecordedCall:
    """One call of ``losses``, and the gradients that the loop computed from it.

    ``batch``: as it was loaded, before ``prepare``. ``phase``: which of the step's phases is trained.
    ``terms``: what was returned, with tensors copied; ``differentiable``: whether any term requires a gradient.
    ``changed``: names of what the call changed, beginning with ``batch.``, ``previous.`` (the previous model's output),
    ``model.`` or ``state.`` (the method's). ``gradients``: for each parameter with a gradient after backward(), whether
    it is finite. ``ran_previous``: whether the call ran the previous network itself; ``read_previous``: whether it did
    so, or has read anything of its output.
    """

    batch: Batch
    phase: str
    terms: Any
    differentiable: bool
    changed: tuple[str, ...]
    gradients: dict[str, bool] | None = None
    ran_previous: bool = False
    read_previous: bool = False

    @property
    def values(self) -> Numbers:
        """The terms as numbers; only for a call without faults."""
        return {name: float(term) for name, term in self.terms.items()}


@dataclass
class RecordedStep:
    """One step of a training.

    ``context``: with the grown model as it was before ``initialise``, and the previous model (copies, if models are
    kept). ``state_before``, ``state_after``: the method's state when the step begins and ends; ``state_fault``: why the
    latter cannot be stored; ``state_at``: the state when the iterations of a phase begin. ``initial``, ``end``: the
    model's weights after ``initialise`` and after the training. ``passes``: ``context.batches`` of each phase.
    ``test_reads``: reads of test images. ``previous_changed``: what differs of the previous model at the end.
    ``ended``: the phase that has ended last. ``hooks``: those outside the iterations, in the order of their calls.

    ``selecting``: whether exemplars are being chosen. ``exemplars``: what was chosen, None without a choice.
    ``shown``: the classes that the labels of an exemplar show, by its name. ``faults``: what is wrong with what
    ``prepare`` did, each once. ``written``: for each hook the parts of the model that it has changed, and must not.
    """

    context: StepContext
    state_before: State | None = None
    initial: State = field(default_factory=dict)
    passes: dict[str, Callable[..., Iterable[Batch]]] = field(default_factory=dict)
    state_at: dict[str, State] = field(default_factory=dict)
    calls: list[RecordedCall] = field(default_factory=list)
    test_reads: list[str] = field(default_factory=list)
    previous_changed: tuple[str, ...] = ()
    end: State = field(default_factory=dict)
    state_after: State = field(default_factory=dict)
    state_fault: str | None = None
    ended: str | None = None
    hooks: list[str] = field(default_factory=list)
    selecting: bool = False
    exemplars: list[Exemplar] | None = None
    shown: dict[str, tuple[int, ...]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    written: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that were trained, in order."""
        return tuple(dict.fromkeys(call.phase for call in self.calls))

    def batches_of(self, phase: str) -> list[Batch]:
        """Return the batches of a phase, as they were loaded."""
        return [call.batch for call in self.calls if call.phase == phase]


@dataclass
class RecordedTraining:
    """A training up to its end, or up to ``error``.

    ``calling`` is the call of the method that is running, or that raised the error; ``location`` says where.
    ``logged``: the terms of the last iteration as the training loop logs them. ``planned``: whether the training
    could be planned.
    """

    model: str
    setting: str
    steps: list[RecordedStep] = field(default_factory=list)
    error: Exception | None = None
    calling: str | None = None
    logged: Numbers = field(default_factory=dict)
    planned: bool = True
    location: Location = field(init=False)

    def __post_init__(self) -> None:
        self.location = self.at()

    def at(self, step: RecordedStep | None = None, iteration: int | None = None, term: str | None = None) -> Location:
        """Return a location in this training."""
        return Location(self.model, self.setting, None if step is None else step.context.step, iteration, term)

    @property
    def failure(self) -> str | None:
        """What failed, in words; None for a training that reached its end."""
        if self.error is None:
            return None
        caller = self.calling or ("the training loop" if self.planned else "the plan")
        return f"{caller} raised {describe_error(self.error)}"

    def calls(self) -> Iterator[tuple[RecordedCall, Location]]:
        """Yield every call of ``losses`` with its location."""
        for step in self.steps:
            for iteration, call in enumerate(step.calls):
                yield call, self.at(step, iteration)

    def first_difference(self, other: RecordedTraining) -> str | None:
        """Return how another training of the same steps differs first, None if they agree bit for bit."""
        if other.failure is not None:
            return f"the training stops: {other.failure}"
        for mine, theirs in zip(self.steps, other.steps, strict=True):
            step = mine.context.step
            if mine.hooks != theirs.hooks:
                return f"at step {step} the hooks are called as {', '.join(theirs.hooks)}"
            if mine.exemplars != theirs.exemplars:
                return f"at step {step} other exemplars are chosen"
            for one, two in zip(mine.calls, theirs.calls, strict=True):
                for _, found in differing_terms(one.values, two.values):
                    return f"at step {step} {found}"
            if changes(mine.end, theirs.end) or changes(mine.state_after, theirs.state_after):
                return f"after step {step} the weights or the method's state differ"
        return None


def differing_terms(expected: Numbers, found: Numbers, tolerance: float = 0.0) -> Iterator[tuple[str, str]]:
    """Yield the name of each term that differs, and a sentence; ``tolerance`` is relative, 0 means bit for bit."""
    for name in dict.fromkeys([*expected, *found]):
        if name not in expected or name not in found:
            yield name, f"the term {name} is {'present' if name in found else 'absent'}"
        elif not math.isclose(expected[name], found[name], rel_tol=tolerance, abs_tol=1e-6 if tolerance else 0.0):
            yield name, f"the term {name} is {found[name]:.9g} instead of {expected[name]:.9g}"


def changes(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """Return the names of what is new, gone, or not the same bit for bit."""
    names = dict.fromkeys([*before, *after])
    return tuple(n for n in names if n not in before or n not in after or not _same(before[n], after[n]))


def _same(one: Tensor | bool, other: Tensor | bool) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    # NaN is the same as NaN here: a value that was NaN before has not changed.
    same_kind = one.shape == other.shape and one.dtype == other.dtype
    return same_kind and (torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


def copy_batch(batch: Batch) -> Batch:
    """Return a batch with tensors of its own."""
    return copy.deepcopy(batch)


def copy_state(state: Mapping[str, Tensor]) -> State:
    """Return copies of all tensors."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


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
        save({name: tensor.cpu().contiguous() for name, tensor in state.items()})
    except Exception as error:  # noqa: BLE001 (whatever the library raises for this state)
        return f"it cannot be written: {describe_error(error)}"
    return None


def listed(names: tuple[str, ...]) -> str:
    """Return names for a sentence: the first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
