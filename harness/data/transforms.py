"""What training and testing see of an image and its mask; both are always moved together.

Companions (``step.Companion``) are moved with them: a mask is then uint8 (1 + K, H, W), the labels and K companions,
whose ``fills`` are what each is padded with.

Geometry works on raw 8-bit pixels and labels, normalisation comes last. Padding is therefore black before
normalisation, as in the released code, and ``pad_label`` in the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cispbench.harness.data.geometry import (
    SMALLEST,
    Generator,
    ImageAndMask,
    area_box,
    short_side_size,
    torchvision,
    uniform,
    whole,
)
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.splits.errors import RecipeError
from cispbench.splits.settings import VOID

Normalise = Literal["imagenet", "half"]
_MEAN_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class EvalView:
    """What a test sees of an image: shorter side at ``resize_short``, then the central ``crop`` x ``crop`` pixels.

    None leaves a step out; without a crop the full image is seen. Smaller images are padded with black and void.
    ``normalise``: by ImageNet's mean and deviation, or by 0.5 and 0.5. Raises RecipeError.
    """

    resize_short: int | None = None
    crop: int | None = None
    normalise: Normalise = "imagenet"

    def __post_init__(self) -> None:
        problems = [
            f"{name} is a number of pixels, at least {SMALLEST}, not {value!r}"
            for name, value in (("crop", self.crop), ("resize_short", self.resize_short))
            if value is not None and value < SMALLEST
        ]
        if self.normalise not in _MEAN_STD:
            problems.append(f"normalise is {' or '.join(_MEAN_STD)}, not {self.normalise!r}")
        if problems:
            raise RecipeError(
                f"the test view is wrong: {'; '.join(problems)}.", hint="Correct the recipe's data section."
            )


class TrainTransform:
    """What training sees of an image, at random: the augmentation of a recipe.

    Making one imports torchvision, once for all worker processes, unless the recipe only crops: images that have the
    crop's size already do not need it.
    """

    def __init__(self, recipe: DataRecipe, fills: Sequence[int] = ()) -> None:
        # Images keep their scale: those of the crop's size are then only mirrored.
        self._crops_only = recipe.resize == "none" and recipe.resize_short is None
        if not self._crops_only:
            torchvision()
        self._recipe, self._fills = recipe, tuple(fills)
        self.mean, self.deviation = _statistics(recipe.normalise)

    def __call__(self, image: Tensor, mask: Tensor, generator: Generator = None) -> tuple[Tensor, Tensor]:
        """Return float32 (3, crop, crop) and uint8 (crop, crop) of uint8 (3, H, W) and uint8 (H, W).

        Where the image is smaller than the crop, it is padded as ``pad`` says: with black, the mask with ``pad_label``.
        Random numbers come from ``generator`` alone, or from torch's global one if it is None. The result's mask may
        share memory with ``mask``. Raises TypeError or ValueError for anything else than such tensors.
        """
        recipe = self._recipe
        _check(image, mask, self._fills)
        # Images that have the crop's size, such as synthetic scenes, need no torchvision, which is slow to import.
        if not (self._crops_only and mask.shape[-2:] == (recipe.crop, recipe.crop)):
            image, mask = _random_crop(ImageAndMask.wrap(image, mask), recipe, generator, self._fills).unwrap()
        if recipe.flip > 0 and uniform(0, 1, generator) < recipe.flip:
            image, mask = image.flip(-1), mask.flip(-1)
        return _normalised(image, self.mean, self.deviation), mask


class EvalTransform:
    """A test view at work; torchvision is imported when one is made, if the view resizes."""

    def __init__(self, view: EvalView, fills: Sequence[int] = ()) -> None:
        if view.resize_short is not None:
            torchvision()
        self._view, self._fills = view, tuple(fills)
        self.mean, self.deviation = _statistics(view.normalise)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 (3, h, w) and uint8 (h, w) of uint8 (3, H, W) and uint8 (H, W). Raises as TrainTransform."""
        _check(image, mask, self._fills)
        size = (mask.shape[-2], mask.shape[-1])
        resized = short_side_size(size, self._view.resize_short)
        crop = self._view.crop
        if size != resized or (crop is not None and resized != (crop, crop)):
            both = ImageAndMask.wrap(image, mask).resize(resized)
            image, mask = (both if crop is None else _centre(both, crop, self._fills)).unwrap()
        return _normalised(image, self.mean, self.deviation), mask


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
    both = both.resize(size).pad(recipe.crop, recipe.pad_label, recipe.pad, fills)
    top, left = (whole(side - recipe.crop, generator) for side in both.size)
    return both.cut(top, left, recipe.crop, recipe.crop)


def _centre(both: ImageAndMask, crop: int, fills: Sequence[int]) -> ImageAndMask:
    both = both.pad(crop, VOID, fills=fills)
    top, left = (round((side - crop) / 2) for side in both.size)
    return both.cut(top, left, crop, crop)


def _normalised(image: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return image.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(deviation)


def _statistics(name: str) -> tuple[Tensor, Tensor]:
    # Times 255: the pixels are normalised as they are, without a division by 255 first.
    mean, deviation = (torch.tensor(values).view(3, 1, 1) * 255 for values in _MEAN_STD[name])
    return mean, deviation


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
