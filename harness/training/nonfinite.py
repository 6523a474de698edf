"""Losses that are NaN or infinite: which iterations are skipped, how they are counted, when the step ends.

The policy for fp32 and bf16:

- An iteration is *finite* if the sum of its loss terms is finite in every process and, with ``optim.clip``, the norm
  of the gradient is finite, too. All processes come to the same answer.
- An iteration that is not finite is *skipped*: weights, momenta and the statistics of batch norms stay as they were
  (``guarded_update.py``), and its terms stay out of the log. ``TrainingLog.skipped`` counts these iterations.
- ``SKIPPED_IN_A_ROW`` of them in a row end the step with a RunError. So do, in all, more than ``SKIPPED_SHARE`` of the
  step's iterations (and more than ``SKIPPED_IN_A_ROW``).
- Without ``optim.clip`` nobody looks at the gradient, which may overflow although the loss is finite. Then the weights
  become NaN; ``require_finite_weights`` ends the step before such weights are saved or published.

The policy for fp16 differs, because gradients overflow until torch's GradScaler has found a scale for the loss:

- If a gradient is not finite, GradScaler leaves the update out and lowers the scale.
- Such an overflow is part of the search for a scale, and no fault: the iteration stays finite and its terms are logged.
  With a scale of 1 or less there is nothing left to search: then the iteration is not finite.
- An iteration that is not finite, by its loss or by such an overflow, is skipped as above, even if its gradients are
  finite, and may end the step as above.
- ``TrainingLog.skipped`` counts every update that was left out: iterations that are not finite, and overflows.

Checkpoints keep the counts. A step that is resumed again and again ends as the undisturbed one does.

``loop.py`` asks whether the loss is finite, ``optimisation.py`` makes the update or leaves it out, ``monitor.py`` reads
the losses, and this file counts.

Whether an iteration is finite stays on the device until the losses are logged: reading it in every iteration would
make the device wait. So do the overflows of fp16. Exception: on the CPU reading costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cispbench.harness.distributed.group import Group
from cispbench.splits.errors import RunError

SKIPPED_IN_A_ROW = 5
SKIPPED_SHARE = 0.01
IDS_SHOWN = 8


@dataclass(frozen=True)
class DeviceLosses:
    """The losses of an iteration (from 1), not read yet: tensors on the device.

    ``ids``: the images of this process's share. ``terms``: what this share adds to each term of the global batch.
    ``finite``: a bool, the same in every process. ``notes``: what this share adds to each noted number.
    """

    iteration: int
    ids: tuple[str, ...]
    terms: dict[str, Tensor]
    finite: Tensor
    notes: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class HostLosses:
    """The same losses once they are read: ``terms`` and ``notes`` of the global batch.

    ``share_finite``: whether what this process's share added to them is finite.
    """

    iteration: int
    ids: tuple[str, ...]
    terms: dict[str, float]
    finite: bool
    share_finite: bool
    notes: dict[str, float] = field(default_factory=dict)


def read_losses(pending: Sequence[DeviceLosses], group: Group) -> list[HostLosses]:
    """Read losses from the device, every term and every note summed over the processes.

    It waits for the device. All processes call it for the same iterations.
    """
    terms, shares_finite = _read([losses.terms for losses in pending], group)
    notes, _ = _read([losses.notes for losses in pending], group)
    finite = torch.stack([losses.finite for losses in pending]).tolist()
    return [
        HostLosses(losses.iteration, losses.ids, *read)
        for losses, *read in zip(pending, terms, finite, shares_finite, notes, strict=True)
    ]


def _read(found: Sequence[Mapping[str, Tensor]], group: Group) -> tuple[list[dict[str, float]], list[bool]]:
    """Return the sums over the processes by name, and whether what this process adds to them is finite."""
    names = list(dict.fromkeys(name for values in found for name in values))
    names = list(dict.fromkeys(name for theirs in group.gather(names) for name in theirs))
    if not names:
        return [{} for _ in found], [True for _ in found]
    device = next((tensor.device for values in found for tensor in values.values()), None)
    zero = torch.zeros((), dtype=torch.float64, device=device)
    # In float64, which holds the numbers of every other type exactly.
    share = torch.stack([torch.stack([values.get(name, zero).double() for name in names]) for values in found])
    sums = [dict(zip(names, row, strict=True)) for row in group.sum(share.clone()).tolist()]
    if group.size == 1:  # An iteration may lack a name that another one has.
        sums = [{name: row[name] for name in values} for row, values in zip(sums, found, strict=True)]
    return sums, [all(map(math.isfinite, row)) for row in share.tolist()]


@dataclass
class SkippedIterations:
    """Counts the iterations of a step that are not finite, and ends the step when there are too many."""

    step: int
    iterations: int
    in_a_row: int = 0
    in_all: int = 0

    def count(self, losses: HostLosses, group: Group) -> None:
        """Count the iteration if it is not finite. Raises RunError, in all processes, if that is one too many."""
        if losses.finite:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.in_all += 1
        if self.in_a_row >= min(SKIPPED_IN_A_ROW, self.iterations):
            raise self._error(losses, f"{self.in_a_row} iterations in a row", group)
        if self.in_all > max(SKIPPED_IN_A_ROW, SKIPPED_SHARE * self.iterations):
            raise self._error(losses, f"{self.in_all} of {self.iterations} iterations", group)

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return {"in_a_row": self.in_a_row, "in_all": self.in_all}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take back what ``state_dict`` returned."""
        self.in_a_row, self.in_all = int(state["in_a_row"]), int(state["in_all"])

    def _error(self, last: HostLosses, how_many: str, group: Group) -> RunError:
        first, until = last.iteration - self.in_a_row + 1, "to" if self.in_a_row > 2 else "and"
        where = f"iteration {first}" + (f" {until} {last.iteration}" if self.in_a_row > 1 else "")
        ids = [name for own in group.gather(_suspect_ids(last)) for name in own]
        shown = ", ".join(ids[:IDS_SHOWN]) + (f" and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else "")
        return RunError(
            f"{reason(last)} at {where} of step {self.step} ({how_many} were skipped; the images of the last one: "
            f"{shown}).",
            hint="Lower the learning rate (--set optim.lr=...), clip gradients (--set optim.clip=1) or use --set "
            "optim.precision=fp32; the last checkpoint is kept, and a changed recipe begins a step of its own.",
        )


def reason(losses: HostLosses) -> str:
    """Say why an iteration is not finite."""
    names = [name for name, value in losses.terms.items() if not math.isfinite(value)]
    return f"the loss {names[0]} is not a finite number" if names else "the gradient's norm is not a finite number"


def _suspect_ids(last: HostLosses) -> tuple[str, ...]:
    """Return this process's images of the last iteration, unless only another process's loss is not finite."""
    only_elsewhere = last.share_finite and not all(map(math.isfinite, last.terms.values()))
    return () if only_elsewhere else last.ids


def require_finite_weights(model: nn.Module, step: int, iteration: int) -> None:
    """Raise RunError if a parameter or buffer is NaN or infinite, so that it is neither saved nor published."""
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
