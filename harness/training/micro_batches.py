"""A global batch that is worked on in micro-batches: how their losses add up to its loss.

A loss term is a mean over something: over the images, or over what the method's ``counts`` counts (labelled pixels,
for example). The term of the global batch is therefore a weighted sum: each micro-batch's term times the count of the
micro-batch, divided by the count of the global batch. A plain mean over micro-batches would be wrong wherever void
pixels are unevenly spread. The gradients add up in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cispbench.harness.distributed.division import Division
from cispbench.harness.distributed.group import Group
from cispbench.harness.method import Batch, Method, Output, StepContext
from cispbench.splits.errors import MethodError


def cut_share(share: Batch, division: Division, rank: int) -> list[Batch]:
    """Cut a process's share of the global batch into its micro-batches."""
    if division.undivided:
        return [share]
    sizes = division.sizes(rank)
    if len(share.ids) != sum(sizes):
        raise ValueError(f"a share of {len(share.ids)} images cannot be cut into {sizes}")
    micro_batches, start = [], 0
    for size in sizes:
        micro_batches.append(share.part(slice(start, start + size)))
        start += size
    return micro_batches


@dataclass(frozen=True)
class _Counts:
    """Over how many things terms are means: ``named`` for the terms that the method counts, ``images`` for others."""

    images: Tensor
    named: dict[str, Tensor]

    def of(self, term: str) -> Tensor:
        return self.named.get(term, self.images)


def as_count(count: Tensor | int, micro_batch: Batch) -> Tensor:
    """Return what a method counts in a part as a tensor beside its images.

    In float64, which holds every number of pixels exactly, and counts that are no integers, too.
    """
    device = micro_batch.images.device
    if isinstance(count, Tensor):
        return count.detach().to(device).double()
    # Filled in, not copied from the host: a copy would make a GPU wait.
    return torch.full((), float(count), dtype=torch.float64, device=device)


class TermWeights:
    """Weigh the terms of micro-batches, and refuse methods whose losses cannot be divided.

    For each global batch: ``start_batch``, ``weigh`` for each micro-batch, ``end_batch``. An undivided batch is left
    as it is, and its method is not asked for counts.
    """

    def __init__(self, method: Method, context: StepContext, division: Division, group: Group) -> None:
        self._method, self._context, self._group = method, context, group
        self._undivided = division.undivided
        self._totals: _Counts | None = None
        self._names: tuple[str, ...] | None = None  # of the terms that the method counts; None before the first batch
        self._state_before: dict[str, Tensor] | None = None

    def start_batch(self, micro_batches: Sequence[Batch], previous_output: Callable[[Batch], Output | None]) -> None:
        """Count the global batch: even the first micro-batch is divided by the counts of all of them."""
        if self._undivided:
            return
        if self._names is None:
            self._state_before = {name: tensor.clone() for name, tensor in self._method.state_dict().items()}
        self._totals = None
        if len(micro_batches) == 1:
            return  # `weigh` counts it, with the previous network's output that the losses need anyway
        # This runs the previous network once more for each micro-batch: there is no memory to keep all outputs. A
        # method that counts nothing does not need them.
        if self._names == ():
            counts = [self._count_images(micro_batch) for micro_batch in micro_batches]
        else:
            counts = [self._count(micro_batch, previous_output(micro_batch)) for micro_batch in micro_batches]
        self._totals = self._add_up(counts)

    def weigh(self, terms: dict[str, Tensor], micro_batch: Batch, previous: Output | None) -> dict[str, Tensor]:
        """Return what the terms of a micro-batch add to those of the global batch."""
        if self._undivided:
            return terms
        counts = self._count(micro_batch, previous)
        if self._totals is None:
            self._totals = self._add_up([counts])
        self._require_names(tuple(counts.named))
        missing = [name for name in counts.named if name not in terms]
        if missing:
            raise MethodError(
                f"the method {self._method.name} counts {missing[0]!r}, and has terms {', '.join(terms)}.",
                hint="Give what `counts` returns the names of terms.",
            )
        weighted = {}
        for name, term in terms.items():
            total = self._totals.of(name)
            # Nothing is counted in the whole global batch: 0 instead of 0 / 0.
            weight = torch.where(total > 0, counts.of(name) / total, 0.0)
            weighted[name] = term * weight.to(term.dtype)
        return weighted

    def end_batch(self) -> None:
        """Look, after the first global batch alone, for what would be wrong without an error."""
        before, self._state_before = self._state_before, None
        if before is None:
            return
        after = self._method.state_dict()
        if before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in before):
            raise MethodError(
                f"the method {self._method.name} changes its state in `losses`, which sees only a part of each batch.",
                hint="Train it without --devices and --micro-batch.",
            )
        if self._group.size > 1:
            self._require_all_gradients(self._context.model)
            self._require_same_draws(self._context.generator)

    def _require_all_gradients(self, model: nn.Module) -> None:
        # DDP waits for the gradient of every parameter: without one it would fail, or hang, in the next iteration.
        idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        if idle:
            raise MethodError(
                f"the loss of {self._method.name} reaches {len(idle)} parameters not at all ({idle[0]}).",
                hint="Train it without --devices, or take requires_grad from what is not learnt.",
            )

    def _require_same_draws(self, generator: torch.Generator | None) -> None:
        # As many numbers as there are images in a share, for example: from there on all devices would draw others.
        first, *others = self._group.gather(None if generator is None else generator.get_state().numpy().tobytes())
        if any(state != first for state in others):
            raise MethodError(
                f"the method {self._method.name} has drawn other numbers from context.generator on one device than on "
                "another.",
                hint="Draw as many of them on every device, whatever its share of the batch is.",
            )

    @torch.no_grad()
    def _count(self, micro_batch: Batch, previous: Output | None) -> _Counts:
        found = self._method.counts(micro_batch, previous, self._context)
        named = {name: as_count(count, micro_batch) for name, count in sorted(found.items())}
        return _Counts(self._count_images(micro_batch).images, named)

    def _count_images(self, micro_batch: Batch) -> _Counts:
        return _Counts(as_count(len(micro_batch.ids), micro_batch), {})

    def _add_up(self, counts: Sequence[_Counts]) -> _Counts:
        """Return the counts of the global batch: of all micro-batches, of all processes."""
        if self._names is None:
            self._names = tuple(counts[0].named)
            for names in self._group.gather(self._names):
                self._require_names(names)
        for found in counts:
            self._require_names(tuple(found.named))
        rows = [torch.stack([found.images, *found.named.values()]) for found in counts]
        images, *named = self._group.sum(torch.stack(rows).sum(0)).unbind()
        return _Counts(images, dict(zip(self._names, named, strict=True)))

    def _require_names(self, names: tuple[str, ...]) -> None:
        if names != self._names:
            raise MethodError(
                f"the method {self._method.name} counts {', '.join(names) or 'nothing'} in one part of the "
                f"data and {', '.join(self._names or ()) or 'nothing'} in another.",
                hint="Let `counts` return the same names for every batch of a step, 0 where there is nothing.",
            )
