"""The cross-entropy that the harness trains shared bases with, and that methods build upon.

``target`` is int64 (B, H, W) with 0 background, then classes in order of learning, 255 void.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cispbench.harness.machine.lazy import functional, torch
from cispbench.splits.settings import VOID

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor, void_in_mean: bool = False) -> Tensor:
    """Return the mean cross-entropy over non-void pixels; 0 (with a gradient of 0) where all pixels are void.

    ``logits`` (B, C, H, W), ``target`` (B, H, W). ``void_in_mean`` counts void pixels, which cost 0, in the mean, as
    MiB's released train.py does.
    """
    total = pixel_cross_entropy(logits, target, "sum")
    return total / pixels_in_mean(target, void_in_mean)


def pixel_cross_entropy(logits: Tensor, target: Tensor, reduction: Literal["sum", "none"]) -> Tensor:
    """Return the cross-entropy of each pixel (B, H, W), or the sum; void pixels cost 0. In float32.

    ``logits`` (B, C, H, W), ``target`` (B, H, W).
    """
    if classes_last(logits):
        logits, flat = logits.movedim(1, -1).flatten(0, 2), target.flatten()
        cost = functional.cross_entropy(logits.float(), flat, ignore_index=VOID, reduction=reduction)
        return cost if reduction == "sum" else cost.view_as(target)
    return functional.cross_entropy(logits.float(), target, ignore_index=VOID, reduction=reduction)


def labelled_pixels(target: Tensor) -> Tensor:
    """Return the number of pixels that are not void, as a tensor without dimensions."""
    return (target != VOID).sum()


def classes_last(logits: Tensor) -> bool:
    """Whether a pixel's classes lie next to each other in memory, as a Segmenter's do.

    There a softmax over the last axis takes a quarter of the time: over axis 1 it copies its input first.
    """
    return logits.is_contiguous(memory_format=torch.channels_last)


def pixels_in_mean(target: Tensor, void_in_mean: bool) -> Tensor | int:
    """Return the number of pixels that a mean divides by, at least 1."""
    return target.numel() if void_in_mean else labelled_pixels(target).clamp(min=1)
