"""Batches of a step's images: in an order and with an augmentation that depend on the seed alone.

Neither the number of workers nor the iteration at which an epoch is resumed changes a batch. No global random generator
(torch, numpy, random) is used.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cispbench.harness.data.labels import relabel, to_table
from cispbench.harness.data.source import Source
from cispbench.harness.data.transforms import EvalTransform, EvalView, TrainTransform
from cispbench.harness.data.workers import Labelled, Sample, batches_of, stack, stack_by_size
from cispbench.harness.distributed.division import Division
from cispbench.harness.method import Batch
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.splits.errors import DataError


class Draw(NamedTuple):
    """One sample of training: the epoch, the place in the epoch's order, and the image's place in ``ids``."""

    epoch: int
    position: int
    image: int


# Apart from the loader: the iterator that a loader keeps would otherwise refer to the loader, and the workers of a
# loader that is given up would live until the garbage collector finds that circle.
@dataclass(frozen=True)
class _Order:
    """The order of training: which draws make which batch; with ``division`` the share of the process ``rank``."""

    images: int
    batch_size: int
    seed: int
    division: Division | None = None
    rank: int = 0

    def __len__(self) -> int:
        return max(1, self.images // self.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[list[Draw]]:
        """Yield the batches of an epoch from ``start`` on, then those of all epochs after it, without an end."""
        yield from self._epoch(epoch)[start:]
        for later in itertools.count(epoch + 1):
            yield from self._epoch(later)

    def _epoch(self, epoch: int) -> list[list[Draw]]:
        order = torch.randperm(self.images, generator=_generator("order", self.seed, epoch)).tolist()
        size = self.batch_size
        # A step of few images still trains on whole batches, so that the recipe's batch size holds.
        if len(order) < size:
            order = (order * -(-size // len(order)))[:size]
        draws = [Draw(epoch, position, image) for position, image in enumerate(order)]
        batches = [draws[number * size : (number + 1) * size] for number in range(len(self))]
        return batches if self.division is None else [self.division.share(batch, self.rank) for batch in batches]


class _LabelledImages(Dataset[Sample]):
    def __init__(self, source: Source, split: str, table: Tensor) -> None:
        self._source, self._split, self._table = source, split, table

    def _read(self, image_id: str) -> tuple[Tensor, Tensor]:
        image, mask = self._source.read(self._split, image_id)
        return image, relabel(mask, self._table, place=f"the mask of the {self._split} image {image_id}")


class TrainSet(_LabelledImages):
    """Augmented samples by ``Draw``: image float32 (3, H, W), target uint8 (H, W), id.

    ``table``: 256 labels, see ``labels.to_table``, applied before the augmentation: what ``recipe.pad_label`` adds
    stays as it is whatever ``recipe.void`` does with the data's own void. ``cache`` keeps decoded images in memory,
    each worker its own.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        ids: Sequence[str],
        table: Sequence[int] | Tensor,
        recipe: DataRecipe,
        seed: int,
        cache: bool = False,
    ) -> None:
        super().__init__(source, split, to_table(table, recipe.void))
        self.ids = tuple(ids)
        self._transform = TrainTransform(recipe)
        self._seed = seed
        self._cache, self._kept = cache, dict[int, tuple[Tensor, Tensor]]()

    def __getitem__(self, draw: Draw) -> Sample:
        pair = self._kept.get(draw.image) or self._read(self.ids[draw.image])
        if self._cache:
            self._kept[draw.image] = pair
        return *self._transform(*pair, _generator("sample", self._seed, *draw)), self.ids[draw.image]


class _EvalSet(_LabelledImages):
    def __init__(self, source: Source, split: str, table: Tensor, view: EvalView) -> None:
        super().__init__(source, split, table)
        self._transform = EvalTransform(view)

    def __getitem__(self, image_id: str) -> Sample:
        return *self._transform(*self._read(image_id)), image_id


class TrainLoader:
    """Epochs of full batches over a step's images.

    An epoch is a permutation drawn from (seed, epoch), cut into batches; an incomplete one is left out.
    Fewer images than a batch: the permutation is repeated until one batch is full, which is then the whole epoch.
    ``workers``: processes that decode ahead (0: none); after a whole epoch they go on with the next one, until
    ``close`` or the end of the loader. ``pin_memory``: page-locked batches; by default exactly where CUDA is
    available. Other arguments as in ``TrainSet``. Raises DataError if there are no images.
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
    ) -> None:
        if not ids:
            raise DataError("a step has no training images.", hint="Use more data, or another task.")
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size}")
        self._set = TrainSet(source, "train", ids, table, recipe, seed, cache)
        self._order = _Order(len(ids), batch_size, seed)
        self._workers, self._pin_memory = workers, pin_memory
        self._kept: tuple[int, Iterator[Labelled]] | None = None

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self._order)

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
        if division.batch != self._order.batch_size:
            raise ValueError(f"{division} divides no batches of {self._order.batch_size}")
        shared = copy.copy(self)
        shared._order, shared._kept = replace(self._order, division=division, rank=rank), None
        return shared

    def close(self) -> None:
        """End the workers; a later epoch starts new ones."""
        self._kept = None

    def _iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        if start == len(self):
            return
        kept, self._kept = self._kept, None
        if kept is not None and (epoch, start) == (kept[0], 0):
            # The workers that made the epoch before are already at work on this one.
            stream = kept[1]
        else:
            plan = self._order.batches(epoch, start)
            stream = batches_of(self._set, plan, stack, self._workers, self._pin_memory)
        for number in range(start, len(self)):
            images, target, ids = next(stream)
            if number == len(self) - 1:
                self._kept = epoch + 1, stream
            yield Batch(images, target, tuple(ids))


class EvalLoader:
    """Every image of ``ids`` once, in order: (images float32 (b, 3, H, W), target int64 (b, H, W), ids).

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
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size}")
        self.ids = tuple(ids)
        self._rank, self._devices = rank, devices
        self._set = _EvalSet(source, split, to_table(table), view)
        self._batch_size, self._workers = batch_size, workers

    def __iter__(self) -> Iterator[Labelled]:
        plan = [list(self.ids[start : start + self._batch_size]) for start in range(0, len(self.ids), self._batch_size)]
        own = plan[self._rank :: self._devices]
        for groups in batches_of(self._set, own, stack_by_size, self._workers, None):
            for images, target, ids in groups:
                yield images, target, tuple(ids)


def _generator(*parts: object) -> torch.Generator:
    # A hash, because sums of small numbers would give neighbouring epochs and images the same seeds. Shifted, because
    # torch takes seeds of 63 bits.
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
