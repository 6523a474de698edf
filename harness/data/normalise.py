"""Normalise images where the network reads them: 8-bit pixels become float32 on the device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Statistics = Literal["imagenet", "half"]
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class Normalisation:
    """Bring pixels to a device, minus the mean and divided by the deviation of each channel.

    ``statistics``: those of ImageNet, or 0.5 and 0.5 ("half").
    """

    def __init__(self, statistics: Statistics, device: torch.device | None = None) -> None:
        self.device = torch.device("cpu") if device is None else device
        # Times 255: the pixels are normalised as they are, without a division by 255 first.
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in STATISTICS[statistics])
        self.mean, self.deviation = mean.to(self.device), deviation.to(self.device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return float32 (B, 3, H, W) in the memory format of channels_last of uint8 (B, 3, H, W)."""
        images = pixels.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        # As wide as a row of pixels: a mean of three values would keep the CPU from working on several at once.
        shape = (1, 3, 1, images.shape[-1])
        mean, deviation = (
            one.expand(shape).contiguous(memory_format=torch.channels_last) for one in (self.mean, self.deviation)
        )
        return images.float().sub_(mean).div_(deviation)

    def pixels(self, images: Tensor) -> Tensor:
        """Return uint8 pixels of normalised images: what the call was given."""
        return (images * self.deviation + self.mean).round().clamp(0, 255).to(torch.uint8)
