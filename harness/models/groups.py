"""What a step adds to the head of a network; a file of its own, so that importing the name does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

CLASSES = "classes"  # the role of a group that has no other
# The role of a group that reads the decoder's map without passing gradients back: its loss trains its own parameters
# alone, as DKD's auxiliary classifier needs it. Networks that cannot do so refuse it (``ModelSpec.offers``).
AUXILIARY = "auxiliary"


@dataclass(frozen=True)
class Group:
    """Channels that are added to the head together, in a branch of their own where the network has branches.

    The first ``extra`` channels are no classes (SSUL's "unknown", BARM's residual of the background); then come
    ``classes`` classes in the order of learning. ``role``: the name by which recipes give learning rates; a group of
    the role ``AUXILIARY`` passes no gradients back. Raises ValueError for a group without a channel.
    """

    classes: int = 0
    extra: int = 0
    role: str = CLASSES

    def __post_init__(self) -> None:
        if self.classes < 0 or self.extra < 0 or self.channels == 0:
            raise ValueError(f"a group has at least 1 channel, not {self.extra} extra ones and {self.classes} classes")

    @property
    def channels(self) -> int:
        """The number of channels, extra ones and classes."""
        return self.extra + self.classes
