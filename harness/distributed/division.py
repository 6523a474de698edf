"""How a global batch is divided among devices, and into micro-batches that follow each other on each device.

The *global batch* is what the recipe's ``batch`` says. It is cut into pieces that all devices work on together, one
piece after the other; each device takes its part of every piece. That part is the device's *micro-batch*, and all
micro-batches of a device are its *share* of the global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cispbench.splits.errors import UsageError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Division:
    """A global batch of ``batch`` images on ``devices``, each of which holds at most ``micro_batch`` images at once.

    ``micro_batch`` None: no limit. The images of a micro-batch are neighbours in the global batch, and the sizes of
    two micro-batches differ by at most one. Raises UsageError if a device would be left without an image.
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
        if self.batch // self.micro_batches < self.devices:
            raise UsageError(
                f"--micro-batch {self.micro_batch} leaves some of {self.devices} devices without an image of a batch "
                f"of {self.batch}.",
                hint=f"Use --micro-batch 2, or a batch that {self.devices} divides.",
            )

    @property
    def micro_batches(self) -> int:
        """The number of micro-batches that a device works on for each global batch."""
        if self.micro_batch is None:
            return 1
        share = -(-self.batch // self.devices)
        return -(-share // self.micro_batch)

    @property
    def undivided(self) -> bool:
        """Whether one device holds the global batch at once."""
        return self.devices == 1 and self.micro_batches == 1

    @property
    def smallest_micro_batch(self) -> int:
        """The fewest images that all devices together work on at once."""
        return self.batch // self.micro_batches

    def share(self, items: Sequence[Item], rank: int) -> list[Item]:
        """Return a device's share of a global batch, micro-batch by micro-batch."""
        return [items[place] for start, end in self._bounds(rank) for place in range(start, end)]

    def sizes(self, rank: int) -> list[int]:
        """Return the images of each micro-batch of a device; at least one of each."""
        return [end - start for start, end in self._bounds(rank)]

    def _bounds(self, rank: int) -> list[tuple[int, int]]:
        """Return where each micro-batch of a device starts and ends in the global batch."""
        bounds = []
        for number in range(self.micro_batches):
            # All devices are in the same piece of the global batch at a time. Batch norms, whose statistics cross the
            # devices, thus see the same images whatever the number of devices.
            first, end = (self.batch * edge // self.micro_batches for edge in (number, number + 1))
            size = end - first
            bounds.append((first + size * rank // self.devices, first + size * (rank + 1) // self.devices))
        return bounds
