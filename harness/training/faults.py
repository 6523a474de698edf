"""Losses that are no numbers: when a training goes on, and how it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from cispbench.harness.distributed.group import Group
from cispbench.harness.training.gradients import Outcome
from cispbench.splits.errors import RunError

SKIPPED_IN_A_ROW = 5  # a step ends once so many iterations in a row had no finite loss,
SKIPPED_SHARE = 0.01  # or more than this share of all its iterations, and more than so many in a row, did
IDS_TOLD = 8


@dataclass(frozen=True)
class Read:
    """An iteration (from 1) as it was read from the device, with the terms of the whole batch.

    ``sound``: whether this process's share of them is finite. ``updated``: whether the parameters followed. ``ids``:
    this process's images.
    """

    iteration: int
    terms: dict[str, float]
    sound: bool
    updated: bool
    ids: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether the iteration counts: every term is a finite number, and the parameters followed."""
        return self.updated and _finite(self.terms)


def read_outcomes(pending: Sequence[Outcome], group: Group) -> list[Read]:
    """Bring iterations to the host, every term summed over the processes. All of them call it for the same ones."""
    names = list(dict.fromkeys(name for outcome in pending for name in outcome.terms))
    names = list(dict.fromkeys(name for found in group.gather(names) for name in found))
    nothing = torch.zeros((), dtype=torch.float64, device=pending[0].updated.device)
    # In float64, so that a number is told as it is, whatever its type.
    rows = [torch.stack([outcome.terms.get(name, nothing).double() for name in names]) for outcome in pending]
    own, updated = torch.stack(rows), torch.stack([outcome.updated for outcome in pending])
    sums = group.sum(own.clone()) if group.size > 1 else own
    reads = []
    for outcome, mine, all_of_it, flag in zip(pending, own.tolist(), sums.tolist(), updated.tolist(), strict=True):
        found = names if group.size > 1 else list(outcome.terms)
        terms, ours = (dict(zip(names, values, strict=True)) for values in (all_of_it, mine))
        told = {name: terms[name] for name in found}
        reads.append(Read(outcome.iteration + 1, told, _finite(ours), flag, outcome.ids))
    return reads


def _finite(terms: dict[str, float]) -> bool:
    return all(map(math.isfinite, terms.values()))


@dataclass
class Skips:
    """Counts the iterations whose loss was no finite number, and ends the step when there are too many."""

    step: int
    iterations: int
    in_a_row: int = 0
    in_all: int = 0
    _row: list[Read] = field(default_factory=list)

    def note(self, read: Read, group: Group) -> None:
        """Note an iteration, the same on all processes. Raises RunError where it is one too many."""
        if read.kept:
            self.in_a_row = 0
            self._row.clear()
            return
        self.in_a_row += 1
        self.in_all += 1
        self._row = [*self._row, read][-SKIPPED_IN_A_ROW:]
        if self.in_a_row >= min(SKIPPED_IN_A_ROW, self.iterations):
            raise self._error(f"{self.in_a_row} iterations in a row", group)
        if self.in_all > max(SKIPPED_IN_A_ROW, SKIPPED_SHARE * self.iterations):
            raise self._error(f"{self.in_all} of {self.iterations} iterations", group)

    def _error(self, how_often: str, group: Group) -> RunError:
        first, last = self._row[0], self._row[-1]
        names = [name for name, value in first.terms.items() if not math.isfinite(value)]
        what = f"the loss {names[0]} is not a finite number" if names else "the gradient's norm is not a finite number"
        where = f"iteration {first.iteration}"
        if last.iteration > first.iteration:
            where += f" to {last.iteration}" if len(self._row) > 2 else f" and {last.iteration}"
        ids = [name for own in group.gather(self._faulty_ids()) for name in own]
        told = ", ".join(ids[:IDS_TOLD]) + (f" and {len(ids) - IDS_TOLD} more" if len(ids) > IDS_TOLD else "")
        return RunError(
            f"{what} at {where} of step {self.step} ({how_often} were skipped; the images of the last one: {told}).",
            hint="Lower the learning rate (--set optim.lr=...), clip gradients (--set optim.clip=1) or use --set "
            "optim.precision=fp32; the last checkpoint is kept, and a changed recipe begins a step of its own.",
        )

    def _faulty_ids(self) -> tuple[str, ...]:
        """Return this process's images of the last iteration, if its own share is what was no number."""
        last = self._row[-1]
        return last.ids if not last.sound or _finite(last.terms) else ()


def require_finite_weights(model: nn.Module, step: int, iteration: int) -> None:
    """Raise RunError if a parameter or buffer is no finite number: no such state is kept."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    if bool(torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).all()):
        return
    broken = next(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    raise RunError(
        f"the weights are not finite numbers after iteration {iteration} of step {step} ({broken}): the gradients "
        "overflowed.",
        hint="Clip gradients (--set optim.clip=1) or lower the learning rate (--set optim.lr=...); the last "
        "checkpoint is kept.",
    )
