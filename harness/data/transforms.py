"""What training and testing see of an image and its mask; both are always moved together.

Companions (``step.Companion``) are moved with them: a mask is then uint8 (1 + K, H, W), the labels and K companions,
whose ``fills`` are what each is padded with.

Images stay 8-bit pixels here: they are normalised on the device that trains or tests (``normalise.py``), so that a
loading process hands over a quarter of the bytes. Padding is therefore black before normalisation, as in the released
code, and ``pad_label`` in the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cispbench.harness.data.geometry import (
    SMALLEST,
    Generator,
    ImageAndMask,
    area_box,
    short_side_size,
    uniform,
    whole,
)
from cispbench.harness.data.normalise import STATISTICS, Statistics
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.splits.errors import RecipeError
from cispbench.splits.settings import VOID


@dataclass(frozen=True)
class EvalView:
    """What a test sees of an image: shorter side at ``resize_short``, then the central ``crop`` x ``crop`` pixels.

    None leaves a step out; without a crop the full image is seen. Smaller images are padded with black and void.
    ``normalise``: by ImageNet's mean and deviation, or by 0.5 and 0.5. Raises RecipeError.
    """

    resize_short: int | None = None
    crop: int | None = None
    normalise: Statistics = "imagenet"

    def __post_init__(self) -> None:
        problems = [
            f"{name} is a number of pixels, at least {SMALLEST}, not {value!r}"
            for name, value in (("crop", self.crop), ("resize_short", self.resize_short))
            if value is not None and value < SMALLEST
        ]
        if self.normalise not in STATISTICS:
            problems.append(f"normalise is {' or '.join(STATISTICS)}, not {self.normalise!r}")
        if problems:
            raise RecipeError(
                f"the test view is wrong: {'; '.join(problems)}.", hint="Correct the recipe's data section."
            )


class TrainTransform:
    """What training sees of an image, at random: the augmentation of a recipe."""

    def __init__(self, recipe: DataRecipe, fills: Sequence[int] = ()) -> None:
        self._recipe, self._fills = recipe, tuple(fills)
        # Images keep their scale: those of the crop's size are then only mirrored.
        self._crops_only = recipe.resize == "none" and recipe.resize_short is None

    def __call__(self, image: Tensor, mask: Tensor, generator: Generator = None) -> tuple[Tensor, Tensor]:
        """Return uint8 (3, crop, crop) and uint8 (crop, crop) of uint8 (3, H, W) and uint8 (H, W).

        Where the image is smaller than the crop, it is padded as ``pad`` says: with black, the mask with ``pad_label``.
        Random numbers come from ``generator`` alone, or from torch's global one if it is None. The result may share
        memory with what is given. Raises TypeError or ValueError for anything else than such tensors.
        """
        recipe = self._recipe
        _check(image, mask, self._fills)
        if not (self._crops_only and mask.shape[-2:] == (recipe.crop, recipe.crop)):
            both = _random_crop(ImageAndMask(image, mask), recipe, generator, self._fills)
            image, mask = both.image, both.mask
        if recipe.flip > 0 and uniform(0, 1, generator) < recipe.flip:
            image, mask = image.flip(-1), mask.flip(-1)
        return image, mask


class EvalTransform:
    """A test view at work."""

    def __init__(self, view: EvalView, fills: Sequence[int] = ()) -> None:
        self._view, self._fills = view, tuple(fills)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return uint8 (3, h, w) and uint8 (h, w) of uint8 (3, H, W) and uint8 (H, W). Raises as TrainTransform."""
        _check(image, mask, self._fills)
        size = (mask.shape[-2], mask.shape[-1])
        resized = short_side_size(size, self._view.resize_short)
        crop = self._view.crop
        if size != resized or (crop is not None and resized != (crop, crop)):
            both = ImageAndMask(image, mask).resize(resized)
            both = both if crop is None else _centre(both, crop, self._fills)
            image, mask = both.image, both.mask
        return image, mask


def _random_crop(both: ImageAndMask, recipe: DataRecipe, generator: Generator, fills: Sequence[int]) -> ImageAndMask:
    size = short_side_size(both.size, recipe.resize_short)
    if recipe.resize == "area":
        box = area_box(size, recipe.scale, recipe.ratio, generator)
        return both.resize(size).cut(*box).resize((recipe.crop, recipe.crop))
    if recipe.resize == "scale":
        # Both resizings at once: half the work, and pixels are interpolated once.
        low, high = recipe.scale
        factor = uniform(low, high, generator)
        size = max(SMALLEST, int(size[0] * factor)), max(SMALLEST, int(size[1] * factor))
    both, crop = both.resize(size), recipe.crop
    left, top, right, bottom = both.padding(crop, recipe.pad)
    down = whole(top + both.size[0] + bottom - crop, generator)
    along = whole(left + both.size[1] + right - crop, generator)
    return both.cut(down - top, along - left, crop, crop, (recipe.pad_label, *fills))


def _centre(both: ImageAndMask, crop: int, fills: Sequence[int]) -> ImageAndMask:
    left, top, right, bottom = both.padding(crop)
    height, width = both.size
    down, along = round((top + height + bottom - crop) / 2), round((left + width + right - crop) / 2)
    return both.cut(down - top, along - left, crop, crop, (VOID, *fills))


def _check(image: Tensor, mask: Tensor, fills: Sequence[int]) -> None:
    for name, value, dimensions in (("image", image, 3), ("mask", mask, 3 if fills else 2)):
        if not isinstance(value, Tensor):
            raise TypeError(f"the {name} must be a tensor, not {type(value).__name__}")
        if value.dtype != torch.uint8 or value.ndim != dimensions:
            raise TypeError(f"the {name} must be uint8 with {dimensions} dimensions, not {value.dtype} {value.shape}")
    if image.shape[1:] != mask.shape[-2:]:
        raise ValueError(f"the image has {tuple(image.shape[1:])} pixels, its mask {tuple(mask.shape[-2:])}")
    if fills and len(mask) != 1 + len(fills):
        raise ValueError(f"a mask with {len(fills)} companions has {1 + len(fills)} planes, not {len(mask)}")
