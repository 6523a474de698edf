"""How a batch is divided: into parts that follow each other, and each part among the devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cispbench.splits.errors import UsageError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Division:
    """A batch of ``batch`` images on ``devices``, each of which holds at most ``micro_batch`` at once (None: no limit).

    Parts, and shares of a part, are neighbours in the batch, and of sizes that differ by at most one; a part holds the
    same images whatever the number of devices. Raises UsageError if a device would be left without an image.
    """

    batch: int
    devices: int = 1
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        if self.batch < self.devices:
            raise UsageError(
                f"a batch of {self.batch} cannot be shared by {self.devices} devices.",
                hint=f"Use --devices {self.batch} or fewer, or a larger batch (--set optim.batch=...).",
            )
        if self.batch // self.parts < self.devices:
            raise UsageError(
                f"--micro-batch {self.micro_batch} leaves some of {self.devices} devices without an image of a batch "
                f"of {self.batch}.",
                hint=f"Use --micro-batch 2, or a batch that {self.devices} divides.",
            )

    @property
    def parts(self) -> int:
        """The parts that follow each other; their gradients are accumulated."""
        if self.micro_batch is None:
            return 1
        share = -(-self.batch // self.devices)
        return -(-share // self.micro_batch)

    @property
    def whole(self) -> bool:
        """Whether nothing is divided."""
        return self.devices == 1 and self.parts == 1

    @property
    def smallest_part(self) -> int:
        """The images of the smallest part, over all devices."""
        return self.batch // self.parts

    def share(self, items: Sequence[Item], rank: int) -> list[Item]:
        """Return the items of a batch that are a device's own, part by part."""
        places = [place for start, end in self._shares(rank) for place in range(start, end)]
        return [items[place] for place in places]

    def sizes(self, rank: int) -> list[int]:
        """Return how many images of each part are a device's own; at least one of each."""
        return [end - start for start, end in self._shares(rank)]

    def _shares(self, rank: int) -> list[tuple[int, int]]:
        shares = []
        for part in range(self.parts):
            first, end = (self.batch * (part + more) // self.parts for more in (0, 1))
            size = end - first
            shares.append((first + size * rank // self.devices, first + size * (rank + 1) // self.devices))
        return shares
