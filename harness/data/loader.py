"""Batches of a step's images: in an order and with an augmentation that depend on the seed alone.

Neither the number of workers nor the iteration at which an epoch is resumed changes a batch. No global random generator
(torch, numpy, random) is used. The places of images and exemplars in a batch are in ``order.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from cispbench.harness.data.companions import Maps
from cispbench.harness.data.exemplars import ExemplarSet
from cispbench.harness.data.labels import to_table
from cispbench.harness.data.normalise import Normalisation
from cispbench.harness.data.order import Draw, Order, order_of
from cispbench.harness.data.samples import EvalSet, TrainSet, split_planes
from cispbench.harness.data.source import Source
from cispbench.harness.data.transforms import EvalView
from cispbench.harness.data.workers import Labelled, batches_of, stack, stack_by_size
from cispbench.harness.distributed.division import Division
from cispbench.harness.method import Batch
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.splits.errors import DataError

_NO_EPOCH = -1  # in the seeds of images that are read in no epoch of the training


class TrainLoader:
    """Epochs of full batches over a step's images.

    An epoch is a permutation drawn from (seed, epoch), cut into batches; an incomplete one is left out.
    Fewer images than a batch: the permutation is repeated until one batch is full, which is then the whole epoch.
    ``workers``: processes that decode ahead (0: none); after a whole epoch they go on with the next one, until
    ``close`` or the end of the loader. ``pin_memory``: page-locked batches; by default exactly where CUDA is
    available. ``device``: where the batches lie; by default on the CPU. ``exemplars``: None for a method without a
    memory. Other arguments as in ``TrainSet``. Raises DataError if there are no images.
    """

    def __init__(
        self,
        source: Source,
        ids: Sequence[str],
        table: Sequence[int] | Tensor,
        recipe: DataRecipe,
        batch_size: int,
        seed: int,
        workers: int = 0,
        cache: bool = False,
        pin_memory: bool | None = None,
        device: torch.device | None = None,
        exemplars: ExemplarSet | None = None,
        companions: Sequence[Maps] = (),
    ) -> None:
        if not ids:
            raise DataError("a step has no training images.", hint="Use more data, or another task.")
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size}")
        self._set = TrainSet(source, ids, table, recipe, seed, cache, exemplars, companions)
        self._names = tuple(maps.companion.name for maps in companions)
        # Of each place; None without a memory.
        self._origins = None if exemplars is None else torch.tensor([exemplars.step] * len(ids) + exemplars.origins)
        self._own, self._order = len(ids), order_of(len(ids), batch_size, seed, exemplars)
        self._division: tuple[Division, int] | None = None
        self._workers, self._pin_memory = workers, pin_memory
        self._normalise = Normalisation(recipe.normalise, device)
        self._kept: tuple[int, Iterator[Labelled]] | None = None

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self._order)

    @property
    def batch_size(self) -> int:
        """The images of a batch, of all devices together."""
        return self._order.batch_size

    @property
    def ids(self) -> tuple[str, ...]:
        """The step's own images, without exemplars."""
        return self._set.ids[: self._own]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch (from 0), from batch ``start`` on; earlier ones are never decoded.

        Raises ValueError if the epoch has no such batch (``start == len(self)`` is empty), DataError for data that
        break a rule.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start is a batch from 0 to {len(self)}, not {start}")
        return self._iterate(epoch, start)

    def share(self, division: Division, rank: int) -> TrainLoader:
        """Return a loader of the share that one process has in the very same, whole batches; it decodes no other."""
        if division.batch != self.batch_size:
            raise ValueError(f"{division} divides no batches of {self.batch_size}")
        shared = copy.copy(self)
        shared._division, shared._kept = (division, rank), None
        return shared

    def close(self) -> None:
        """End the workers; a later epoch starts new ones."""
        self._kept = None

    def first_epoch(self, view: EvalView | None = None) -> Iterator[Batch]:
        """Yield the batches of the first epoch, none of whose images is replaced by an exemplar.

        They are augmented as in the training; or, without augmentation, as a test with ``view`` sees them.
        """
        return self._read(self._order.own.epoch(0), view)

    def listed(self, places: Sequence[int], size: int, view: EvalView | None = None) -> Iterator[Batch]:
        """Yield the images at ``places`` in their order, ``size`` of them a batch; ``view`` as in ``first_epoch``."""
        draws = [Draw(_NO_EPOCH, position, place) for position, place in enumerate(places)]
        return self._read((draws[start : start + size] for start in range(0, len(draws), size)), view)

    def places(self, ids: Sequence[str]) -> list[int]:
        """Return where the loader has the images: the step's own where it has both, else exemplars.

        Raises DataError for an id that it has not.
        """
        places = {image_id: place for place, image_id in reversed(list(enumerate(self._set.ids)))}
        for image_id in ids:
            if image_id not in places:
                raise DataError(
                    f"{image_id!r} is none of the {self._own:,} images of the step.",
                    hint="Ask for ids of its batches (`batch.ids`).",
                )
        return [places[image_id] for image_id in ids]

    def _read(self, plan: Iterable[list[Draw]], view: EvalView | None) -> Iterator[Batch]:
        samples = self._set if view is None else self._set.seen_by(view)
        for labelled in batches_of(samples, plan, stack, self._workers, self._pin_memory):
            yield self._batch(labelled)

    def _iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        if start == len(self):
            return
        kept, self._kept = self._kept, None
        if kept is not None and (epoch, start) == (kept[0], 0):
            # The workers that made the epoch before are already at work on this one.
            stream = kept[1]
        else:
            plan = _shares(self._order, epoch, start, self._division)
            stream = batches_of(self._set, plan, stack, self._workers, self._pin_memory)
        for number in range(start, len(self)):
            labelled = next(stream)
            if number == len(self) - 1:
                self._kept = epoch + 1, stream
            yield self._batch(labelled)

    def _batch(self, labelled: Labelled) -> Batch:
        pixels, planes, places = labelled
        images, target, companions = _on_device(pixels, planes, self._names, self._normalise)
        origin = None if self._origins is None else self._origins[list(places)].to(target.device, non_blocking=True)
        return Batch(images, target, tuple(self._set.ids[place] for place in places), origin, companions)


class EvalLoader:
    """Every image of ``ids`` once, in order: images float32 (b, 3, H, W), target int64 (b, H, W), ids, companions.

    Neighbours of the same size share a batch of at most ``batch_size``; nothing is ever padded to fill one, so
    whatever is counted over the pixels does not depend on the size of the batches. Of ``devices`` processes each takes
    every so many-th batch, as it would be on one: their counts add up to the very same. Arguments as in
    ``TrainLoader``.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        ids: Sequence[str],
        table: Sequence[int] | Tensor,
        view: EvalView,
        batch_size: int,
        workers: int = 0,
        rank: int = 0,
        devices: int = 1,
        companions: Sequence[Maps] = (),
        device: torch.device | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size}")
        self.ids = tuple(ids)
        self._normalise = Normalisation(view.normalise, device)
        self._rank, self._devices = rank, devices
        self._set = EvalSet(source, split, to_table(table), view, companions)
        self._names = tuple(maps.companion.name for maps in companions)
        self._batch_size, self._workers = batch_size, workers

    def __iter__(self) -> Iterator[Batch]:
        plan = [list(self.ids[start : start + self._batch_size]) for start in range(0, len(self.ids), self._batch_size)]
        own = plan[self._rank :: self._devices]
        for groups in batches_of(self._set, own, stack_by_size, self._workers, None):
            for pixels, planes, ids in groups:
                images, target, companions = _on_device(pixels, planes, self._names, self._normalise)
                yield Batch(images, target, tuple(ids), companions=companions)


def _on_device(
    pixels: Tensor, planes: Tensor, names: Sequence[str], normalise: Normalisation
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return normalised images, targets and companions by name on the device. All were 8-bit on the way to it."""
    target, companions = split_planes(planes.to(normalise.device, non_blocking=True).long(), names)
    return normalise(pixels), target, companions


def _shares(order: Order, epoch: int, start: int, division: tuple[Division, int] | None) -> Iterator[list[Draw]]:
    # No method: the iterator that a loader keeps would otherwise refer to the loader, and the workers of a loader that
    # is given up would live until the garbage collector finds that circle.
    for batch in order.batches(epoch, start):
        yield batch if division is None else division[0].share(batch, division[1])
