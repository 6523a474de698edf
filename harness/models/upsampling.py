"""From the grid of a head to the pixels of the images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def upsample(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (B, C, h, w) bilinearly at (H, W) = ``size``, in the memory format of channels_last.

    There the classes of a pixel lie next to each other: what runs over the classes takes a fraction of the time.
    """
    masks = masks.contiguous(memory_format=torch.channels_last)
    if len(masks) == 1:
        # With the strides of a batch: those of a single image may leave its memory format open, and torch's result
        # would have the other one.
        masks = masks[0].permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    logits = functional.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    return logits.contiguous(memory_format=torch.channels_last)
