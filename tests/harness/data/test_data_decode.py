"""Files that break a rule are named, with the rule; files that keep it are read as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cispbench.harness.data.decode import Pair, check_image, decode_image, read_pair
from cispbench.splits.errors import DataError

HEIGHT, WIDTH = 6, 9


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A grey image and a palette mask with classes 0, 3, 20 and void."""
    files = Pair(tmp_path / "a.jpg", tmp_path / "a.png")
    Image.new("RGB", (WIDTH, HEIGHT), (120, 120, 120)).save(files.image)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[1, 2], mask[2, 3], mask[5, 8] = 3, 20, 255
    palette_mask(mask).save(files.mask)
    return files


def palette_mask(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values, mode="L") if values.dtype == np.uint8 else Image.fromarray(values)
    image.putpalette([channel for value in range(256) for channel in (value, 255 - value, 7)])
    assert image.mode == "P"
    return image


def refused(pair: Pair, *words: str, dataset: str = "voc") -> DataError:
    with pytest.raises(DataError) as caught:
        read_pair(pair, dataset)
    text = str(caught.value)
    for word in words:
        assert word in text
    assert caught.value.hint
    return caught.value


def test_reads_palette_indices_and_not_colours(pair: Pair) -> None:
    image, mask = read_pair(pair, "voc")
    assert image.shape == (3, HEIGHT, WIDTH) and image.dtype == torch.uint8
    assert mask.shape == (HEIGHT, WIDTH) and mask.dtype == torch.uint8
    found = {(row, column): int(mask[row, column]) for row, column in mask.nonzero().tolist()}
    assert found == {(1, 2): 3, (2, 3): 20, (5, 8): 255}


def test_reads_a_palette_of_few_bits(pair: Pair) -> None:
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 4
    palette_mask(values).save(pair.mask, bits=2)
    assert pair.mask.read_bytes()[24] == 2
    assert read_pair(pair, "voc")[1].tolist() == values.tolist()


def test_reads_grey_masks_of_ade(pair: Pair) -> None:
    values = np.full((HEIGHT, WIDTH), 150, np.uint8)
    Image.fromarray(values).save(pair.mask)
    assert read_pair(pair, "ade")[1].tolist() == values.tolist()


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_images_of_any_mode_become_rgb(pair: Pair, mode: str) -> None:
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[..., 0] = 200
    original = Image.fromarray(colours).convert(mode)
    original.save(pair.image, quality=95)
    with Image.open(pair.image) as stored:
        assert stored.mode == mode
    expected = torch.tensor(original.convert("RGB").getpixel((0, 0)))
    difference = (decode_image(pair.image, pair.image.read_bytes())[:, 3, 4].int() - expected).abs()
    assert int(difference.max()) <= 6
    assert check_image(pair.image, pair.image.read_bytes()) == (HEIGHT, WIDTH)


def test_missing_image(pair: Pair) -> None:
    pair.image.unlink()
    refused(pair, f"the image {pair.image} does not exist")


def test_missing_mask(pair: Pair) -> None:
    pair.mask.unlink()
    refused(pair, f"the mask {pair.mask} does not exist")


def test_mask_of_another_size(pair: Pair) -> None:
    palette_mask(np.zeros((HEIGHT, WIDTH + 1), np.uint8)).save(pair.mask)
    refused(pair, str(pair.mask), "6 x 10", str(pair.image), "6 x 9", "height x width")


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("RGB", "8-bit RGB"),
        ("RGBA", "8-bit RGBA"),
        ("LA", "8-bit grey with alpha"),
        ("I;16", "16-bit grey"),
        ("1", "1-bit grey"),
    ],
)
def test_masks_that_are_no_class_numbers(pair: Pair, mode: str, words: str) -> None:
    Image.new(mode, (WIDTH, HEIGHT)).save(pair.mask)
    refused(pair, str(pair.mask), words, "palette or 8-bit grey")


def test_mask_in_another_format(pair: Pair) -> None:
    Image.new("L", (WIDTH, HEIGHT)).save(pair.mask, format="JPEG")
    refused(pair, str(pair.mask), "no PNG")


def test_value_that_is_no_class(pair: Pair) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4, 7] = mask[5, 0] = 77
    mask[5, 1] = 21
    mask[0, 0] = 255
    palette_mask(mask).save(pair.mask)
    refused(pair, str(pair.mask), "value 21", "row 5, column 1", "(and 77)", "1 to 20", "255 void", "PASCAL VOC 2012")
    read_pair(pair, "ade")
    mask[2, 6] = 151
    palette_mask(mask).save(pair.mask)
    refused(pair, "value 151", "row 2, column 6", "1 to 150", "ADE20K", dataset="ade")


@pytest.mark.parametrize("which", ["image", "mask"])
def test_truncated_or_damaged_anywhere(pair: Pair, which: str) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(pair.image)
    palette_mask(rng.integers(0, 20, (HEIGHT, WIDTH), np.uint8)).save(pair.mask)
    path: Path = getattr(pair, which)
    content = path.read_bytes()
    refusals = 0
    # The last bytes hold no pixels: what remains without them may be read, but only as the same picture.
    expected = read_pair(pair, "voc")
    lengths = [*range(0, len(content) - 40, 9), *range(len(content) - 40, len(content))]
    for length in lengths:
        path.write_bytes(content[:length])
        try:
            found = read_pair(pair, "voc")
        except DataError as error:
            refusals += 1
            assert str(path) in str(error)
        else:
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert refusals > len(lengths) - 25


def test_empty_file_is_unreadable(pair: Pair) -> None:
    pair.image.write_bytes(b"")
    refused(pair, f"the image {pair.image} is truncated or unreadable")


def test_folder_in_the_place_of_a_file(pair: Pair) -> None:
    pair.mask.unlink()
    pair.mask.mkdir()
    refused(pair, f"the mask {pair.mask} is a folder")
