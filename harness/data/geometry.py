"""Resize, pad and cut an image together with its mask; random numbers come from a generator alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Generator = torch.Generator | None
Pad = Literal["ends", "all-sides"]
# torch's 8-bit resizing with antialiasing returns garbage, or fails, where the result is one pixel wide.
SMALLEST = 2
_ATTEMPTS = 10


@dataclass(frozen=True, eq=False)
class ImageAndMask:
    """An image (3, H, W) and its mask (H, W); both uint8. With K companions the mask is (1 + K, H, W)."""

    image: Tensor
    mask: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[-2], self.image.shape[-1]

    def resize(self, size: tuple[int, int]) -> ImageAndMask:
        """Resize to (height, width), at least SMALLEST: the image bilinearly, antialiased, the mask to the nearest.

        The image is that of torchvision's ``resize``, the mask that of Pillow's NEAREST, which the released code uses.
        """
        if size == self.size:
            return self
        # With the strides of a batch of one in channels_last: torch's kernel for bytes is twice as fast then.
        batch = self.image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
        image = functional.interpolate(batch, size, mode="bilinear", antialias=True)[0]
        # "nearest" would take pixels that lie up to half a pixel beside the image's.
        mask = functional.interpolate(self.mask.view(1, -1, *self.size), size, mode="nearest-exact")
        return ImageAndMask(image, mask.view(*self.mask.shape[:-2], *size))

    def padding(self, crop: int, pad: Pad = "ends") -> tuple[int, int, int, int]:
        """Return the left, top, right and bottom pixels that bring it to at least ``crop`` x ``crop``.

        ``pad``: the short sides at both ends, or all four sides as ``released_padding`` has it.
        """
        return end_padding(self.size, crop) if pad == "ends" else released_padding(self.size, crop)

    def cut(self, top: int, left: int, height: int, width: int, fills: Sequence[int] = ()) -> ImageAndMask:
        """Cut out a box. What lies beyond the image is black; the planes of the mask have ``fills`` there."""
        high, wide = self.size
        rows, columns = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
        image, mask = self.image[:, rows, columns], self.mask[..., rows, columns]
        if top >= 0 and left >= 0 and top + height <= high and left + width <= wide:
            return ImageAndMask(image, mask)
        # Height before the channels, as a decoded image lies in memory.
        black = image.new_zeros(height, width, 3).permute(2, 0, 1)
        filled = mask.new_empty(*mask.shape[:-2], height, width)
        for plane, fill in zip(filled.view(-1, height, width), fills, strict=True):
            plane.fill_(fill)
        down, along = max(-top, 0), max(-left, 0)
        inside = ..., slice(down, down + image.shape[1]), slice(along, along + image.shape[2])
        black[inside], filled[inside] = image, mask
        return ImageAndMask(black, filled)


def end_padding(size: tuple[int, int], crop: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom pixels that bring (height, width) to the crop; a side that fits gets none."""
    high, wide = (max(0, crop - side) for side in size)
    return wide // 2, high // 2, wide - wide // 2, high - high // 2


def released_padding(size: tuple[int, int], crop: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom pixels as the released code of MBS and SSUL pads (height, width) to the crop.

    Where the width is short, all four sides get what it needs, half each and rounded up; where the height is still
    short then, all four get more. So a narrow, tall image gets bands above and below, too, and the crop may miss some
    of the image. Source: RoadoneP/ECCV2024_MBS at dc83e50, utils/ext_transforms.py, ExtRandomCrop.
    """
    height, width = size
    around = max(0, (1 + crop - width) // 2)
    around += max(0, (1 + crop - height - 2 * around) // 2)
    return around, around, around, around


def short_side_size(size: tuple[int, int], short: int | None) -> tuple[int, int]:
    """Return (height, width) after the shorter side is brought to ``short`` pixels (None: unchanged)."""
    height, width = size
    if short is None:
        return size
    return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)


def area_box(
    size: tuple[int, int], scale: Sequence[float], ratio: Sequence[float], generator: Generator
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random box inside (height, width) = ``size``.

    Its share of the area lies in ``scale``, its width / height in ``ratio`` (drawn on a log scale); boxes that do not
    fit are drawn again, ten times in all, then the largest central box with an allowed aspect is taken: the rule of
    torchvision's RandomResizedCrop, with the same draws in the same order.
    """
    height, width = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_ATTEMPTS):
        area = height * width * uniform(scale[0], scale[1], generator)
        aspect = math.exp(uniform(low, high, generator))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            return whole(height - tall, generator), whole(width - wide, generator), tall, wide
    wide = max(1, min(width, round(height * ratio[1])))
    tall = max(1, min(height, round(width / ratio[0])))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def uniform(low: float, high: float, generator: Generator) -> float:
    """Draw a number from [low, high)."""
    return torch.empty(1).uniform_(low, high, generator=generator).item()


def whole(last: int, generator: Generator) -> int:
    """Draw a whole number from 0 to ``last``, both included."""
    return int(torch.randint(0, last + 1, (1,), generator=generator).item())
