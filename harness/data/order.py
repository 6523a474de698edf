"""Which images make which batch of a training: from the seed, the epoch and the iteration alone."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cispbench.harness.data.exemplars import ExemplarSet, replaced_places


class Draw(NamedTuple):
    """One sample of training: the epoch, the place in the epoch's order, and the image's place in the loader's list.

    An exemplar's epoch and place are those of the order of exemplars, if it has one of its own.
    """

    epoch: int
    position: int
    image: int


@dataclass(frozen=True)
class ImageOrder:
    """A permutation an epoch, cut into whole batches.

    ``first``: the place of the first of the ``images`` in the loader's list. ``name``: of the random stream.
    """

    images: int
    batch_size: int
    seed: int
    first: int = 0
    name: str = "order"

    @property
    def own(self) -> ImageOrder:
        """The order of the images that an epoch goes through: this one."""
        return self

    def __len__(self) -> int:
        return max(1, self.images // self.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[list[Draw]]:
        """Yield the batches of an epoch from ``start`` on, then those of all epochs after it, without an end."""
        yield from itertools.islice(self.epoch(epoch), start, None)
        for later in itertools.count(epoch + 1):
            yield from self.epoch(later)

    def epoch(self, epoch: int) -> Iterator[list[Draw]]:
        """Yield the batches of one epoch."""
        order = torch.randperm(self.images, generator=generator_of(self.name, self.seed, epoch)).tolist()
        size = self.batch_size
        # A step of few images still trains on whole batches, so that the recipe's batch size holds.
        if len(order) < size:
            order = (order * -(-size // len(order)))[:size]
        draws = [Draw(epoch, position, self.first + image) for position, image in enumerate(order)]
        for number in range(len(self)):
            yield draws[number * size : (number + 1) * size]


@dataclass(frozen=True)
class ReplacingOrder:
    """The batches of ``own``, in each of which exemplars stand at ``count`` places, which are drawn anew for each.

    The exemplars have an order of their own, with batches of the same size: at a place that is drawn, the exemplar at
    that place takes over. Whenever that order is through, it is drawn anew. So does the released code of SSUL-M
    (clovaai/SSUL at e08ee9c, main.py).
    """

    own: ImageOrder
    exemplars: ImageOrder
    count: int

    @property
    def batch_size(self) -> int:
        """The images of a batch, exemplars included."""
        return self.own.batch_size

    def __len__(self) -> int:
        return len(self.own)

    def batches(self, epoch: int, start: int) -> Iterator[list[Draw]]:
        """Yield the batches of an epoch from ``start`` on, then those of all epochs after it, without an end."""
        first = epoch * len(self) + start
        others = self.exemplars.batches(*divmod(first, len(self.exemplars)))
        for iteration, batch, exemplars in zip(itertools.count(first), self.own.batches(epoch, start), others):
            generator = generator_of("places", self.own.seed, iteration)
            for place in torch.randperm(len(batch), generator=generator)[: self.count].tolist():
                batch[place] = exemplars[place]
            yield batch


Order = ImageOrder | ReplacingOrder


def order_of(images: int, batch_size: int, seed: int, exemplars: ExemplarSet | None) -> Order:
    """Return the order of a step's images with its exemplars, whose places in the loader's list come after them."""
    if exemplars is None or not exemplars.kept:
        return ImageOrder(images, batch_size, seed)
    memory, kept = exemplars.memory, len(exemplars.kept)
    if memory.use == "append":
        return ImageOrder(images + kept, batch_size, seed)
    others = ImageOrder(kept, batch_size, seed, first=images, name="exemplars")
    return ReplacingOrder(ImageOrder(images, batch_size, seed), others, replaced_places(memory, batch_size))


def generator_of(*parts: object) -> torch.Generator:
    """Return a random generator seeded with named parts."""
    # A hash, because sums of small numbers would give neighbouring epochs and images the same seeds. Shifted, because
    # torch takes seeds of 63 bits.
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
