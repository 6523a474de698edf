"""Numbers of floating-point operations, a multiplication and an addition counted as two. Without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flops:
    """Operations by kind, because devices do not compute both at the same share of their peak.

    ``products``: of matrices, attention included. ``convolutions``: the rest. All else in a network is not counted.
    """

    products: float = 0.0
    convolutions: float = 0.0

    @property
    def total(self) -> float:
        """The operations of both kinds."""
        return self.products + self.convolutions

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.products + other.products, self.convolutions + other.convolutions)

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.products * factor, self.convolutions * factor)


@dataclass(frozen=True)
class Work:
    """Operations of a network (``model``, at training images of ``crop`` pixels a side) in a precision."""

    model: str
    crop: int
    precision: str
    flops: Flops
