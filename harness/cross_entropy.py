"""The cross-entropy that the harness trains shared bases with, and that methods build upon.

``target`` is int64 (B, H, W) with 0 background, then classes in order of learning, 255 void.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cispbench.harness.machine.lazy import functional
from cispbench.harness.pixel_bands import sum_over_pixels
from cispbench.splits.settings import VOID

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor, void_in_mean: bool = False) -> Tensor:
    """Return the mean cross-entropy over non-void pixels; 0 (with a gradient of 0) where all pixels are void.

    ``logits`` (B, C, H, W), ``target`` (B, H, W). ``void_in_mean`` counts void pixels, which cost 0, in the mean, as
    MiB's released train.py does. In float32.
    """
    return sum_over_pixels(pixel_cross_entropy, logits, target) / pixels_in_mean(target, void_in_mean)


def pixel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of n pixels, (n,), from ``logits`` (n, C) and ``target`` (n,); void ones cost 0."""
    return functional.cross_entropy(logits, target, ignore_index=VOID, reduction="none")


def labelled_pixels(target: Tensor) -> Tensor:
    """Return the number of pixels that are not void, as a tensor without dimensions."""
    return (target != VOID).sum()


def pixels_in_mean(target: Tensor, void_in_mean: bool) -> Tensor | int:
    """Return the number of pixels that a mean divides by, at least 1."""
    return target.numel() if void_in_mean else labelled_pixels(target).clamp(min=1)
