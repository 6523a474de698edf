"""Views: image and mask stay together, equal torchvision's and Pillow's own results, and draw from one generator."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from cispbench.harness.data.normalise import Normalisation
from cispbench.harness.data.transforms import EvalTransform, EvalView, TrainTransform
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.splits.errors import RecipeError

METHODS = ("area", "scale", "none")


def painted(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A white ellipse, class 7, off the middle of a black image."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = ((rows - height * 0.45) / (height * 0.3)) ** 2 + ((columns - width * 0.6) / (width * 0.25)) ** 2 < 1
    return inside.to(torch.uint8).mul(255).expand(3, -1, -1).clone(), inside.to(torch.uint8) * 7


def noise(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
        torch.randint(0, 21, (height, width), dtype=torch.uint8, generator=generator),
    )


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grey(image: Tensor) -> Tensor:
    """0 black, 1 white."""
    return image.float().mean(0) / 255


def labels_in(mask: Tensor) -> set[int]:
    return set(mask.flatten().tolist())


def centroid(weights: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in weights.shape), indexing="ij")
    return torch.stack([(rows * weights).sum(), (columns * weights).sum()]) / weights.sum()


def assert_together(image: Tensor, mask: Tensor) -> None:
    """The white pixels are those of class 7, and both lie at the same place to a third of a pixel."""
    white, seven = grey(image), (mask == 7).float()
    assert labels_in(mask) <= {0, 7, 255}
    assert ((white > 0.5) == (seven > 0)).float().mean() > 0.98
    assert (centroid(white) - centroid(seven)).abs().max() < 0.3


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("short", [None, 70])
def test_training_moves_image_and_mask_together(method: Any, short: int | None, seed: int) -> None:
    view = DataRecipe(crop=96, resize=method, resize_short=short)
    image, mask = TrainTransform(view)(*painted(120, 170), stream(seed))
    assert_together(image, mask)


@pytest.mark.parametrize("view", [EvalView(37, 37), EvalView(37), EvalView(250, 200), EvalView(None, 300), EvalView()])
def test_testing_moves_image_and_mask_together(view: EvalView) -> None:
    image, mask = EvalTransform(view)(*painted(111, 171))
    assert_together(image, mask)


def test_plain_tensors_are_transformed_and_masks_never_blended() -> None:
    # torchvision passes a plain tensor beside an Image through untouched, and takes a lone one for a picture.
    image, mask = painted(64, 64)
    mask[mask == 7] = 200
    small_image, small_mask = EvalTransform(EvalView(resize_short=20))(image, mask)
    assert small_image.shape == (3, 20, 20) and small_mask.shape == (20, 20)
    assert labels_in(small_mask) == {0, 200}
    assert len(set(small_image.flatten().tolist())) > 9, "the image itself is to be antialiased"
    for value in (small_image, small_mask):
        assert type(value) is Tensor


def test_pictures_are_refused() -> None:
    image, mask = painted(30, 30)
    picture = Image.fromarray(mask.numpy())
    for transform in (TrainTransform(DataRecipe(crop=30, resize="none")), EvalTransform(EvalView())):
        with pytest.raises(TypeError, match="mask must be a tensor, not Image"):
            transform(image, picture)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="mask must be uint8 with 2 dimensions"):
            transform(image, mask.long())
        with pytest.raises(TypeError, match="image must be uint8"):
            transform(image.float(), mask)
        with pytest.raises(TypeError, match="mask must be uint8 with 2 dimensions"):
            transform(image, mask[None])
        with pytest.raises(ValueError, match=r"\(30, 30\) pixels, its mask \(30, 29\)"):
            transform(image, mask[:, 1:])


@settings(max_examples=120, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    crop=st.integers(2, 30),
    short=st.none() | st.integers(2, 30),
    method=st.sampled_from(METHODS),
    pad_label=st.sampled_from([0, 255]),
    seed=st.integers(0, 9),
)
def test_training_views_of_any_size(
    height: int, width: int, crop: int, short: int | None, method: Any, pad_label: int, seed: int
) -> None:
    view = DataRecipe(crop=crop, resize_short=short, resize=method, pad_label=pad_label)
    given_image, given_mask = noise(height, width, seed)
    before = given_image.clone(), given_mask.clone()
    image, mask = TrainTransform(view)(given_image, given_mask, stream(seed))
    assert image.shape == (3, crop, crop) and image.dtype == torch.uint8
    assert mask.shape == (crop, crop) and mask.dtype == torch.uint8
    labels = labels_in(given_mask)
    assert labels_in(mask) <= labels | {pad_label}
    assert torch.equal(given_image, before[0]) and torch.equal(given_mask, before[1])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    crop=st.none() | st.integers(2, 50),
    short=st.none() | st.integers(2, 50),
)
def test_test_views_of_any_size(height: int, width: int, crop: int | None, short: int | None) -> None:
    image, mask = EvalTransform(EvalView(short, crop))(*noise(height, width))
    if crop is not None:
        expected = (crop, crop)
    elif short is None:
        expected = (height, width)
    else:
        expected = (mask.shape[0], mask.shape[1])
        assert min(expected) == short
        assert abs(max(expected) - short * max(height, width) / min(height, width)) < 1
    assert image.shape == (3, *expected) and mask.shape == expected


@pytest.mark.parametrize("scale", [(0.5, 2.0), (0.1, 0.3)])
def test_area_is_the_random_resized_crop_of_torchvision(scale: tuple[float, float]) -> None:
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    reference = v2.RandomResizedCrop(48, scale=scale, ratio=(0.75, 4 / 3), antialias=True)
    ours = TrainTransform(DataRecipe(crop=48, scale=scale, flip=0.0))
    for seed in range(40):
        image, mask = noise(60 + seed, 90, seed)
        torch.manual_seed(seed)
        expected = reference(tv_tensors.Image(image), tv_tensors.Mask(mask))
        found = ours(image, mask, stream(seed))
        assert torch.equal(found[0], expected[0].as_subclass(Tensor))
        assert found[1].shape == expected[1].shape


def test_area_takes_the_largest_central_box_where_none_fits() -> None:
    image, mask = noise(10, 100)
    found, _ = TrainTransform(DataRecipe(crop=10, scale=(2.0, 2.0), ratio=(1.0, 1.0), flip=0.0))(image, mask, stream(0))
    expected, _ = EvalTransform(EvalView(crop=10))(image, mask)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("height", "width"), [(60, 97), (97, 60), (50, 50)])
def test_the_test_view_is_that_of_torchvision_and_its_mask_that_of_pillow(height: int, width: int) -> None:
    from torchvision.transforms.v2 import functional

    image, mask = noise(height, width)
    found_image, found_mask = EvalTransform(EvalView(32, 32))(image, mask)
    expected = functional.center_crop(functional.resize(image, [32], antialias=True), [32, 32])
    assert torch.equal(found_image, expected)
    tall, wide = EvalTransform(EvalView(32))(image, mask)[1].shape
    picture = Image.fromarray(mask.numpy()).resize((wide, tall), Image.Resampling.NEAREST)
    nearest = functional.center_crop(torch.from_numpy(np.array(picture))[None], [32, 32])[0]
    assert torch.equal(found_mask, nearest)


def test_scale_resizes_once_and_crops() -> None:
    image, mask = noise(40, 60)
    view = DataRecipe(crop=64, resize_short=32, resize="scale", scale=(2.0, 2.0), flip=0.0)
    found, labels = TrainTransform(view)(image, mask, stream(3))
    whole, all_labels = EvalTransform(EvalView(resize_short=64))(image, mask)
    offsets = [left for left in range(33) if torch.equal(found, whole[:, :, left : left + 64])]
    assert len(offsets) == 1
    assert torch.equal(labels, all_labels[:, offsets[0] : offsets[0] + 64])


@pytest.mark.parametrize("pad_label", [255, 0])
def test_padding_is_black_around_and_labelled(pad_label: int) -> None:
    image, mask = torch.full((3, 4, 6), 255, dtype=torch.uint8), torch.full((4, 6), 9, dtype=torch.uint8)
    view = DataRecipe(crop=7, resize="none", flip=0.0, pad_label=pad_label)
    found, labels = TrainTransform(view)(image, mask, stream(0))
    inside = torch.zeros(7, 7, dtype=torch.bool)
    inside[1:5, 0:6] = True
    assert torch.equal(labels == 9, inside) and set(labels[~inside].tolist()) == {pad_label}
    assert torch.equal(found[0], torch.where(inside, 255, 0).to(torch.uint8))
    centred, void = EvalTransform(EvalView(crop=7))(image, mask)
    assert torch.equal(centred, found) and set(void[~inside].tolist()) == {255}


@pytest.mark.parametrize("size", [(8, 8), (9, 8)])
def test_flip_and_crop(size: tuple[int, int]) -> None:
    image, mask = noise(*size)
    never, always = (TrainTransform(DataRecipe(crop=8, resize="none", flip=p)) for p in (0.0, 1.0))
    (straight, labels), (mirrored, mirrored_labels) = never(image, mask, stream(0)), always(image, mask, stream(0))
    assert torch.equal(straight.flip(-1), mirrored) and torch.equal(labels.flip(-1), mirrored_labels)
    assert any(torch.equal(labels, mask[top : top + 8]) for top in range(size[0] - 7))
    half = TrainTransform(DataRecipe(crop=8, resize="none", flip=0.5))
    generator = stream(1)
    views = [half(image[:, :8], mask[:8], generator)[1] for _ in range(400)]
    assert 150 < sum(torch.equal(view, mask[:8]) for view in views) < 250


def test_every_place_of_a_crop_occurs() -> None:
    mask = torch.arange(5, dtype=torch.uint8).expand(2, 5)
    crop = TrainTransform(DataRecipe(crop=2, resize="none", flip=0.0))
    generator = stream(0)
    image = torch.zeros(3, 2, 5, dtype=torch.uint8)
    assert {int(crop(image, mask, generator)[1][0, 0]) for _ in range(200)} == {0, 1, 2, 3}


@pytest.mark.parametrize(("name", "mean", "std"), [("imagenet", 0.406, 0.225), ("half", 0.5, 0.5)])
def test_normalisation(name: Any, mean: float, std: float) -> None:
    pixels = noise(5, 7)[0][None]
    normalise = Normalisation(name)
    found = normalise(pixels)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found[:, 2], (pixels[:, 2] / 255 - mean) / std, atol=1e-6, rtol=0)
    assert torch.equal(normalise.pixels(found), pixels)


def test_chance_comes_from_the_generator_alone() -> None:
    image, mask = noise(50, 60)
    before = torch.get_rng_state()
    for view in (DataRecipe(32, resize="area"), DataRecipe(32, resize="scale"), DataRecipe(32, resize="none")):
        transform = TrainTransform(view)
        first, second, third = (transform(image, mask, stream(seed))[0] for seed in (5, 5, 6))
        assert torch.equal(first, second) and not torch.equal(first, third)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "wrong", [
        {"crop": 1}, {"resize_short": -1}, {"scale": (2.0, 0.5)}, {"ratio": (0.0, 1.0)}, {"flip": 1.5},
        {"pad_label": 256},
    ],
)  # fmt: skip
def test_a_wrong_training_view_is_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(RecipeError, match=name):
        DataRecipe(**wrong)


def test_all_that_is_wrong_with_a_test_view_is_said_at_once() -> None:
    with pytest.raises(RecipeError, match=r"test view is wrong: crop .*; resize_short .*; normalise"):
        EvalView(1, 1, "no")  # type: ignore[arg-type]


def test_no_torchvision_is_imported() -> None:
    code = """
import sys, torch
import cispbench.harness.data.loader
from cispbench.harness.data.transforms import EvalTransform, EvalView, TrainTransform
from cispbench.harness.recipes.fields import DataRecipe
image, mask = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)
TrainTransform(DataRecipe(crop=4, resize="area"))(image, mask)
EvalTransform(EvalView(4, 9))(image, mask)
assert "torchvision" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_scene_costs_less_than_fifty_microseconds() -> None:
    image, mask = noise(48, 48)
    transform, generator = TrainTransform(DataRecipe(crop=48, resize="none")), stream(0)
    times = []
    for _ in range(1000):
        start = time.perf_counter()
        transform(image, mask, generator)
        times.append(time.perf_counter() - start)
    assert min(times) < 50e-6
