"""Bits that flip in the index, in masks and in images: never other data under the same fingerprint."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cispbench.harness.data.check import check_data
from cispbench.harness.data.index import Index, build_index
from cispbench.harness.data.source import find_source, list_data
from cispbench.harness.machine.progress import ProgressView
from cispbench.splits.errors import DataError

FLIPS = 200


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six images of 24 x 16 pixels; each test leaves it as it was."""
    folder, rng = tmp_path_factory.mktemp("voc"), np.random.default_rng(0)
    for part in ("JPEGImages", "SegmentationClassAug", "list"):
        (folder / part).mkdir()
    for name, numbers in (("train_aug", range(4)), ("val", range(4, 6))):
        (folder / "list" / f"{name}.txt").write_text("\n".join(map(str, numbers)) + "\n")
        for number in numbers:
            image = Image.fromarray(rng.integers(0, 255, (16, 24, 3), np.uint8))
            image.save(folder / "JPEGImages" / f"{number}.jpg", quality=90)
            mask = np.zeros((16, 24), np.uint8)
            mask[2:9, 3 : 9 + number], mask[12] = number + 1, 255
            Image.fromarray(mask).save(folder / "SegmentationClassAug" / f"{number}.png")
    return folder


def flip(content: bytes, rng: random.Random) -> bytes:
    bit = rng.randrange(8 * len(content))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def index_of(root: Path, cache: Path) -> Index:
    return build_index("voc", list_data("voc", root)[1], cache)


def test_no_flip_in_the_index_gives_another_fingerprint_or_presence(root: Path, tmp_path: Path) -> None:
    rng, right = random.Random(0), index_of(root, tmp_path)
    content = right.path.read_bytes()
    for _ in range(FLIPS):
        right.path.write_bytes(flip(content, rng))
        with pytest.warns(UserWarning, match="damaged"):
            found = index_of(root, tmp_path)
        assert (found, found.cached) == (right, False)
        assert right.path.read_bytes() == content


def flips_of_files(root: Path, count: int = FLIPS) -> Iterator[Path]:
    """Flip a bit of an image or mask, yield the file, and restore it; every second file gets its old time back."""
    rng = random.Random(1)
    files = sorted([*root.glob("JPEGImages/*"), *root.glob("SegmentationClassAug/*")])
    for number in range(count):
        path = rng.choice(files)
        content, before = path.read_bytes(), path.stat()
        path.write_bytes(flip(content, rng))
        if number % 2:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        yield path
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_flip_in_a_file_is_an_error_or_another_fingerprint(root: Path, tmp_path: Path) -> None:
    """Also where the file has its old size and time."""
    right, errors = index_of(root, tmp_path), 0
    for path in flips_of_files(root):
        try:
            assert index_of(root, tmp_path).fingerprint != right.fingerprint
        except DataError as error:
            errors += 1
            assert str(path) in str(error)
    assert 0 < errors < FLIPS
    assert index_of(root, tmp_path) == right


def test_a_flip_that_the_file_system_does_not_know_of_is_found(root: Path, tmp_path: Path) -> None:
    """As on a broken disk: by reading the file for a training, and by ``data check``."""
    from cispbench.harness.data.index_file import load_entries, save_entries, stamp_of

    right = index_of(root, tmp_path)
    _, pairs = list_data("voc", root)
    entries = load_entries(right.path, "voc")
    for path in flips_of_files(root, FLIPS // 2):
        split = "train" if path.stem in pairs["train"] else "val"
        place, stamp = (split, path.stem), stamp_of(pairs[split][path.stem], False)
        others = {at: type(entry)(stamp_of(pairs[at[0]][at[1]], False), entry.digests, entry.classes)
                  for at, entry in entries.items()}  # fmt: skip
        save_entries(right.path, "voc", others)
        assert others[place].stamp == stamp
        source = find_source("voc", root, tmp_path)
        assert source.fingerprint == right.fingerprint  # the index cannot know
        with pytest.raises(DataError) as caught:
            source.read(split, path.stem)
        assert str(path) in str(caught.value)
        try:
            named = check_data("voc", root, tmp_path, ProgressView()).broken
        except DataError as error:
            named = (error,)
        assert len(named) == 1 and str(path) in str(named[0])


def test_a_file_that_changes_after_the_start_is_an_error(root: Path, tmp_path: Path) -> None:
    """A training reads each file many times, hours after the index."""
    source = find_source("voc", root, tmp_path)
    place_of = {image_id: (split, image_id) for split in ("train", "val") for image_id in source.ids(split)}
    for path in flips_of_files(root):
        with pytest.raises(DataError) as caught:
            source.read(*place_of[path.stem])
        assert str(path) in str(caught.value)
    for place in place_of.values():
        source.read(*place)
