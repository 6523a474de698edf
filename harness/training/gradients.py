"""The gradients of a batch's loss: of the batch as a whole, or put together from parts on one device or several."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cispbench.harness.distributed.division import Division
from cispbench.harness.distributed.group import Group
from cispbench.harness.machine.devices import autocast
from cispbench.harness.method import Batch, Method, Output, StepContext
from cispbench.harness.training.optimisation import Stepper
from cispbench.splits.errors import MethodError

DDP_OPTIONS = inspect.signature(DistributedDataParallel).parameters  # one of them was renamed in torch 2.13
IMAGES = ""  # the count that holds for every term without one of its own


@dataclass(frozen=True)
class Outcome:
    """What an iteration came to: this process's share of each term of the loss, on the device.

    ``updated``: whether it was a finite number, everywhere, and the parameters have followed. ``ids``: its images.
    """

    iteration: int
    ids: tuple[str, ...]
    terms: dict[str, Tensor]
    updated: Tensor


class Gradients:
    """Takes iterations of a step; the network alone is shared out, the previous one works for itself."""

    def __init__(
        self, method: Method, context: StepContext, device: torch.device, precision: str, division: Division,
        group: Group,
    ) -> None:  # fmt: skip
        self._method, self._context, self._group = method, context, group
        self._autocast: Callable[[], Any] = lambda: autocast(device, precision)
        self._division, self._device = division, device
        self._shared: DistributedDataParallel | None = None
        if group.size > 1:
            # Statistics of batch norms are the same everywhere already.
            buffers = "forward_sync_buffers" if "forward_sync_buffers" in DDP_OPTIONS else "broadcast_buffers"
            options: dict[str, Any] = {buffers: False, "device_ids": [device] if device.type == "cuda" else None}
            self._shared = DistributedDataParallel(context.model, **options)
        self._counted: tuple[str, ...] | None = None

    def take(self, batch: Batch, stepper: Stepper, iteration: int) -> Outcome:
        """Take one iteration: losses of the batch (this process's share of it), gradients of the whole, update."""
        stepper.begin(iteration)
        if self._division.undivided:
            terms, _ = self._terms(batch, counted=False)
            loss = torch.stack(list(terms.values())).sum()
            stepper.backward(loss)
            sound = loss.detach().isfinite()
        else:
            terms, sound = self._divided(batch, stepper)
        return Outcome(iteration, batch.ids, {n: t.detach() for n, t in terms.items()}, stepper.update(sound))

    def _divided(self, batch: Batch, stepper: Stepper) -> tuple[dict[str, Tensor], Tensor]:
        parts, fresh = _cut(batch, self._division.sizes(self._group.rank)), self._counted is None
        state = {name: tensor.clone() for name, tensor in self._method.state_dict().items()} if fresh else {}
        totals = self._totals(self._counts_ahead(part) for part in parts) if len(parts) > 1 else None
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            with self._summing_gradients(last=number + 1 == len(parts)):
                terms, counts = self._terms(part)
                if totals is None:
                    totals = self._totals([counts])
                weighted = self._weighted(terms, counts, totals)
                stepper.backward(torch.stack(list(weighted.values())).sum() * self._group.size)
            for name, value in weighted.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        if fresh:
            self._refuse_what_cannot_be_divided(state)
        faulty = (~torch.stack(list(sums.values())).sum().isfinite()).int()
        return sums, self._group.sum(faulty) == 0

    def _previous(self, part: Batch) -> Output | None:
        if self._context.previous is None:
            return None
        with self._autocast(), torch.no_grad():
            output: Output = self._context.previous(part.images)
        return output

    def _terms(self, part: Batch, counted: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the method's terms of a part, and what they are means over."""
        network = self._shared or self._context.model
        previous = self._previous(part)
        with self._autocast():
            output = network(part.images)
        terms = self._method.losses(part, output, previous, self._context)
        if not terms:
            raise MethodError(f"the method {self._method.name} returned no loss term at step {self._context.step}.")
        return terms, self._counts(part, previous) if counted else {}

    def _counts_ahead(self, part: Batch) -> dict[str, Tensor]:
        """Return what the terms of a part will be means over, before any of the parts is worked through."""
        # A method that has counted nothing so far has no need of the previous network's outputs.
        idle = self._counted == (IMAGES,)
        return self._counts(part, None if idle else self._previous(part), idle)

    @torch.no_grad()
    def _counts(self, part: Batch, previous: Output | None, idle: bool = False) -> dict[str, Tensor]:
        found = {} if idle else self._method.counts(part, previous, self._context)
        counts = {IMAGES: len(part.ids), **dict(sorted(found.items()))}
        # In float64, which holds every number of pixels exactly, and weights that are no integers.
        return {n: torch.as_tensor(c, device=self._device).detach().double() for n, c in counts.items()}

    def _totals(self, counts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Add up the counts of all parts, here and elsewhere."""
        parts = list(counts)
        if self._counted is None:
            self._counted = tuple(parts[0])
            self._refuse_other_counts(*self._group.gather(self._counted))
        for part in parts:
            self._refuse_other_counts(tuple(part))
        sums = torch.stack([torch.stack(list(part.values())) for part in parts]).sum(0)
        return dict(zip(self._counted, self._group.sum(sums).unbind(), strict=True))

    def _weighted(
        self, terms: dict[str, Tensor], counts: dict[str, Tensor], totals: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Weigh each term of a part by its share of what the term of the batch is a mean over."""
        missing = [name for name in counts if name not in terms and name != IMAGES]
        if missing:
            raise MethodError(
                f"the method {self._method.name} counts {missing[0]!r}, and has terms {', '.join(terms)}.",
                hint="Give what `counts` returns the names of terms.",
            )
        weighted = {}
        for name, term in terms.items():
            key = name if name in counts else IMAGES
            share = torch.where(totals[key] > 0, counts[key] / totals[key].clamp(min=1e-300), 0.0)
            weighted[name] = term * share.to(term.dtype)
        return weighted

    def _summing_gradients(self, last: bool) -> AbstractContextManager[Any]:
        return self._shared.no_sync() if self._shared is not None and not last else nullcontext()

    def _refuse_other_counts(self, *names: tuple[str, ...]) -> None:
        for found in names:
            if found != self._counted:
                raise MethodError(
                    f"the method {self._method.name} counts {', '.join(found[1:]) or 'nothing'} in one part of the "
                    f"data and {', '.join((self._counted or ())[1:]) or 'nothing'} in another.",
                    hint="Let `counts` return the same names for every batch of a step, 0 where there is nothing.",
                )

    def _refuse_what_cannot_be_divided(self, before: dict[str, Tensor]) -> None:
        """Look once, after the first iteration, for what would be wrong silently."""
        after = self._method.state_dict()
        if before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in before):
            raise MethodError(
                f"the method {self._method.name} changes its state in `losses`, which sees only a part of each batch.",
                hint="Train it without --devices and --micro-batch.",
            )
        idle = [n for n, p in self._context.model.named_parameters() if p.requires_grad and p.grad is None]
        if self._shared is not None and idle:
            raise MethodError(
                f"the loss of {self._method.name} reaches {len(idle)} parameters not at all ({idle[0]}).",
                hint="Train it without --devices, or take requires_grad from what is not learnt.",
            )


def _cut(batch: Batch, sizes: list[int]) -> list[Batch]:
    if len(batch.ids) != sum(sizes):
        raise ValueError(f"a batch of {len(batch.ids)} images cannot be cut into {sizes}")
    parts, start = [], 0
    for size in sizes:
        end = start + size
        parts.append(Batch(batch.images[start:end], batch.target[start:end], batch.ids[start:end]))
        start = end
    return parts
