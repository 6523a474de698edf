"""Resize, pad and cut an image together with its mask; random numbers come from a generator alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Generator = torch.Generator | None
Pad = Literal["ends", "all-sides"]
# torch's 8-bit resizing with antialiasing returns garbage, or fails, where the result is one pixel wide.
SMALLEST = 2
_ATTEMPTS = 10


@dataclass(frozen=True, eq=False)
class ImageAndMask:
    """An image, tv_tensors.Image (3, H, W), and its mask, tv_tensors.Mask (H, W); both uint8.

    With K companions the mask is (1 + K, H, W): the labels, then the companions.

    torchvision's functions choose by the type: they would treat a plain tensor as a picture, and blend classes at every
    edge.
    """

    image: Any
    mask: Any

    @classmethod
    def wrap(cls, image: Tensor, mask: Tensor) -> ImageAndMask:
        """Give the two tensors torchvision's types."""
        _, tv_tensors = torchvision()
        return cls(tv_tensors.Image(image), tv_tensors.Mask(mask))

    def unwrap(self) -> tuple[Tensor, Tensor]:
        """Return both as plain tensors."""
        return self.image.as_subclass(Tensor), self.mask.as_subclass(Tensor)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[-2], self.image.shape[-1]

    def resize(self, size: tuple[int, int]) -> ImageAndMask:
        """Resize to (height, width), at least SMALLEST: the image bilinearly, antialiased, the mask to the nearest."""
        if size == self.size:
            return self
        functional, tv_tensors = torchvision()
        image = functional.resize(self.image, list(size), antialias=True)
        # torchvision gives a Mask NEAREST, whose grid lies up to half a pixel beside the image's (and, in versions
        # before 0.29, whatever is asked for). NEAREST_EXACT is Pillow's nearest, which the released code uses.
        exact = functional.InterpolationMode.NEAREST_EXACT
        mask = functional.resize(tv_tensors.Image(self.mask), list(size), interpolation=exact)
        return ImageAndMask(image, tv_tensors.Mask(mask.view(*self.mask.shape[:-2], *size)))

    def pad(self, crop: int, label: int, pad: Pad = "ends", fills: Sequence[int] = ()) -> ImageAndMask:
        """Pad to at least ``crop`` x ``crop``, the content in the middle: the image with 0, the mask with ``label``.

        ``pad``: the short sides at both ends, or all four sides as ``released_padding`` has it. ``fills``: what each
        companion is padded with.
        """
        padding = end_padding(self.size, crop) if pad == "ends" else released_padding(self.size, crop)
        if not any(padding):
            return self
        functional, tv_tensors = torchvision()
        image = functional.pad(self.image, list(padding), fill=0)
        planes = zip(self.mask if fills else self.mask[None], (label, *fills), strict=True)
        padded = [functional.pad(tv_tensors.Mask(plane), list(padding), fill=fill) for plane, fill in planes]
        return ImageAndMask(image, tv_tensors.Mask(torch.stack(padded)) if fills else padded[0])

    def cut(self, top: int, left: int, height: int, width: int) -> ImageAndMask:
        """Cut out a box that lies inside."""
        functional, _ = torchvision()
        box = (top, left, height, width)
        return ImageAndMask(functional.crop(self.image, *box), functional.crop(self.mask, *box))


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


def torchvision() -> tuple[Any, Any]:
    """Return torchvision's functional transforms and tv_tensors, imported on the first call: that takes seconds."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    return functional, tv_tensors


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
