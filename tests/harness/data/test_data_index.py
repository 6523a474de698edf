"""The index: what it finds, when its cache serves, and that the fingerprint knows data and not places."""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cispbench.harness.data.decode import Pair
from cispbench.harness.data.index import Index, build_index
from cispbench.harness.data.index_file import stamp_of
from cispbench.results.checked_json import read_checked, write_checked
from cispbench.splits.errors import DataError, StoreError
from cispbench.splits.selection import digest, golden_list, golden_steps, select_images
from cispbench.splits.settings import list_settings

Pairs = dict[str, dict[str, Pair]]


def write(folder: Path, count: int = 7) -> Pairs:
    folder.mkdir(parents=True, exist_ok=True)
    pairs: Pairs = {"train": {}, "val": {}}
    for number in range(count):
        split = "val" if number % 3 == 2 else "train"
        pair = Pair(folder / f"{number}.jpg", folder / f"{number}.png")
        Image.new("RGB", (6, 4)).save(pair.image)
        values = np.zeros((4, 6), np.uint8)
        values[1, 1:3], values[3, 5] = (number + 1, 20), 255
        Image.fromarray(values).save(pair.mask)
        os.utime(pair.mask, ns=(10**18, 10**18))
        pairs[split][str(number)] = pair
    return pairs


def in_folder(pairs: Pairs, folder: Path) -> Pairs:
    return {
        split: {i: Pair(folder / pair.image.name, folder / pair.mask.name) for i, pair in part.items()}
        for split, part in pairs.items()
    }


class Count:
    """Remembers the calls of a progress callback; none at all means that the cache has served."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))


def build(pairs: Pairs, cache: Path) -> tuple[Index, bool]:
    """Return the index and whether masks were read for it."""
    count = Count()
    index = build_index("voc", pairs, cache, count)
    return index, bool(count.calls)


def test_finds_classes_without_background_and_void(tmp_path: Path) -> None:
    count = Count()
    pairs = write(tmp_path / "a")
    index = build_index("voc", pairs, tmp_path / "cache", count)
    assert {split: set(part) for split, part in index.presence.items()} == {
        "train": {"0", "1", "3", "4", "6"},
        "val": {"2", "5"},
    }
    assert all(
        classes == {int(image_id) + 1, 20} for part in index.presence.values() for image_id, classes in part.items()
    )
    assert len(bytes.fromhex(index.fingerprint)) == 32
    assert count.calls == [(7, 7)]


def test_second_time_the_cache_serves_the_same(tmp_path: Path) -> None:
    pairs = write(tmp_path / "a")
    first, read = build(pairs, tmp_path / "cache")
    assert read
    assert build(pairs, tmp_path / "cache") == (first, False)


def test_a_folder_that_moves_keeps_its_index(tmp_path: Path) -> None:
    pairs = write(tmp_path / "a")
    first, _ = build(pairs, tmp_path / "cache")
    (tmp_path / "a").rename(tmp_path / "b")
    assert build(in_folder(pairs, tmp_path / "b"), tmp_path / "cache") == (first, False)


def test_a_copy_with_new_times_is_read_again_and_has_the_same_fingerprint(tmp_path: Path) -> None:
    pairs = write(tmp_path / "a")
    first, _ = build(pairs, tmp_path / "cache")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    assert build(in_folder(pairs, tmp_path / "b"), tmp_path / "cache") == (first, True)


def test_any_change_of_the_data_changes_the_fingerprint(tmp_path: Path) -> None:
    pairs = write(tmp_path / "a")
    fingerprints = [build(pairs, tmp_path / "cache")[0].fingerprint]
    values = np.zeros((4, 6), np.uint8)
    values[1, 1:3], values[3, 4] = (1, 20), 255  # the void moves: same classes, same size of file or not
    Image.fromarray(values).save(pairs["train"]["0"].mask)
    fingerprints.append(build(pairs, tmp_path / "cache")[0].fingerprint)
    with pairs["val"]["2"].image.open("ab") as file:
        file.write(b"\0")
    fingerprints.append(build(pairs, tmp_path / "cache")[0].fingerprint)
    moved = {"train": dict(pairs["train"]), "val": {**pairs["val"], "6": pairs["train"]["6"]}}
    del moved["train"]["6"]
    fingerprints.append(build(moved, tmp_path / "cache")[0].fingerprint)
    fingerprints.append(build_index("ade", pairs, tmp_path / "cache").fingerprint)
    assert len(set(fingerprints)) == 5


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}', "fingerprint", "class", "digest"]
)
def test_a_damaged_index_is_named_and_made_anew(tmp_path: Path, content: bytes | str) -> None:
    pairs = write(tmp_path / "a")
    first, _ = build(pairs, tmp_path / "cache")
    (path,) = (tmp_path / "cache" / "index").iterdir()
    good = path.read_bytes()
    replaced = {
        "fingerprint": good.replace(b'"sha256": "', b'"sha256": "0'),
        "class": good.replace(b" 1,20", b" 2,20"),
        "digest": good.replace(first.digests["val"]["2"].mask.encode(), b"0" * 64),
    }
    bad = replaced[content] if isinstance(content, str) else content
    assert bad != good
    path.write_bytes(bad)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged .* all images and masks are read again"):
        assert build(pairs, tmp_path / "cache") == (first, True)
    assert path.read_bytes() == good
    assert build(pairs, tmp_path / "cache") == (first, False)


def test_an_index_of_another_format_is_made_anew_without_a_word(tmp_path: Path) -> None:
    pairs = write(tmp_path / "a")
    first, _ = build(pairs, tmp_path / "cache")
    good = first.path.read_bytes()
    write_checked(first.path, {**read_checked(first.path), "format": 1})
    assert build(pairs, tmp_path / "cache") == (first, True)
    assert first.path.read_bytes() == good


def test_other_pixels_of_the_same_size_are_another_fingerprint(tmp_path: Path) -> None:
    pairs = write(tmp_path / "a")
    first, _ = build(pairs, tmp_path / "cache")
    image = pairs["train"]["0"].image
    content = bytearray(image.read_bytes())
    content[-3] ^= 1
    image.write_bytes(content)
    second, read = build(pairs, tmp_path / "cache")
    assert read and second.fingerprint != first.fingerprint


@pytest.mark.parametrize("how", ["content", "names"])
def test_two_images_that_change_places_are_another_fingerprint(tmp_path: Path, how: str) -> None:
    pairs = write(tmp_path / "a")
    one, other = (pairs["train"][name].image for name in ("0", "1"))
    Image.new("RGB", (6, 4), (9, 9, 9)).save(one)
    assert one.stat().st_size == other.stat().st_size and one.read_bytes() != other.read_bytes()
    for path in (one, other):
        os.utime(path, ns=(10**18, 10**18))
    first, _ = build(pairs, tmp_path / "cache")
    if how == "names":
        third = tmp_path / "third"
        one.rename(third), other.rename(one), third.rename(other)
    else:
        content = one.read_bytes(), other.read_bytes()
        one.write_bytes(content[1]), other.write_bytes(content[0])
    for path in (one, other):
        os.utime(path, ns=(10**18, 10**18))
    second, _ = build(pairs, tmp_path / "cache")
    assert second.fingerprint != first.fingerprint


def test_only_what_has_changed_is_read_again(tmp_path: Path) -> None:
    pairs = write(tmp_path / "a")
    build(pairs, tmp_path / "cache")
    Image.new("RGB", (6, 4), (9, 9, 9)).save(pairs["val"]["5"].image)
    count = Count()
    index = build_index("voc", pairs, tmp_path / "cache", count)
    assert count.calls == [(1, 1)]
    assert index == build_index("voc", pairs, tmp_path / "other")


def test_verify_names_a_file_that_changed_behind_the_back_of_the_file_system(tmp_path: Path) -> None:
    pairs = write(tmp_path / "a")
    first, _ = build(pairs, tmp_path / "cache")
    # As a broken disk does it, the file changes and its description does not: here the index gets the new description.
    mask = pairs["train"]["0"].mask
    values = np.zeros((4, 6), np.uint8)
    values[1, 1:3], values[0, 0] = (1, 20), 255
    Image.fromarray(values).save(mask)
    content = read_checked(first.path)
    line = content["images"]["train"]["0"]
    content["images"]["train"]["0"] = line.replace(line.split(" ")[0], stamp_of(pairs["train"]["0"], False))
    write_checked(first.path, content)
    second, read = build(pairs, tmp_path / "cache")
    assert (second, read) == (first, False)
    verified = build_index("voc", pairs, tmp_path / "cache", verify=True)
    assert [str(mask) in error.message for error in verified.changed] == [True]
    assert verified.fingerprint != first.fingerprint
    assert build_index("voc", pairs, tmp_path / "cache", verify=True).changed == ()


def test_one_offending_file_is_named_with_its_own_rule(tmp_path: Path) -> None:
    pairs = write(tmp_path / "a")
    Image.new("L", (7, 4)).save(pairs["val"]["5"].mask)
    with pytest.raises(DataError, match=r"5.png has 4 x 7 pixels, its image .*5.jpg 4 x 6"):
        build(pairs, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "index").iterdir())


def test_many_offending_files_are_counted_and_five_named(tmp_path: Path) -> None:
    pairs = write(tmp_path / "a", 12)
    offending = [pairs["train"][name] for name in ("0", "1", "10", "3", "4", "6", "7")]
    for number, pair in enumerate(offending):
        Image.new("L", (6, 4), 100 + number).save(pair.mask)
    with pytest.raises(DataError, match="7 of 12 images or masks break a rule") as caught:
        build(pairs, tmp_path / "cache")
    text = str(caught.value)
    assert [pair.mask.name for pair in offending if str(pair.mask) in text] == [
        "0.png",
        "1.png",
        "10.png",
        "3.png",
        "4.png",
    ]
    assert "the value 100, first at row 0, column 0" in text
    assert "and 2 more" in text


def test_missing_files_are_found_before_anything_is_read(tmp_path: Path) -> None:
    pairs = write(tmp_path / "a")
    pairs["train"]["1"].image.unlink()
    pairs["val"]["2"].mask.unlink()
    count = Count()
    with pytest.raises(DataError, match=r"2 of 7(.|\n)*1\.jpg does not exist(.|\n)*2\.png does not exist"):
        build_index("voc", pairs, tmp_path / "cache", count)
    assert not count.calls


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    count = Count()
    with pytest.raises(StoreError, match="cannot create the folder"):
        build_index("voc", write(tmp_path / "a"), tmp_path / "cache", count)
    assert not count.calls


def test_progress_counts_up_to_the_end(tmp_path: Path) -> None:
    count = Count()
    build_index("voc", write(tmp_path / "a", 1), tmp_path / "c1", count)
    assert count.calls == [(1, 1)]
    pairs = write(tmp_path / "b", 7)
    many = {"train": {f"{i}-{j}": pair for i, pair in pairs["train"].items() for j in range(40)}, "val": {}}
    count = Count()
    build_index("voc", many, tmp_path / "c2", count)
    assert [done for done, _ in count.calls] == [64, 128, 192, 200]
    assert {total for _, total in count.calls} == {200}


@pytest.mark.slow
def test_all_real_masks_in_a_minute_and_as_published(shared: Path, tmp_path: Path) -> None:
    with tarfile.open(shared / "data" / "voc-masks.tar") as archive:
        archive.extractall(tmp_path / "masks", filter="data")
    pairs: Pairs = {}
    pictures: dict[tuple[int, int], bytes] = {}
    (tmp_path / "images").mkdir()
    for split in ("train", "val"):
        lines = (shared / "data" / "class-presence" / f"voc_{split}.txt").read_text(encoding="utf-8").splitlines()
        names = [line.split()[0] for line in lines]
        pairs[split] = {n: Pair(tmp_path / "images" / f"{n}.jpg", tmp_path / "masks" / f"{n}.png") for n in names}
    for part in pairs.values():
        for pair in part.values():
            # There are no images: a blank one of the mask's size stands for each.
            with Image.open(pair.mask) as mask:
                size = mask.size
            if size not in pictures:
                Image.new("L", size).save(pair.image)
                pictures[size] = pair.image.read_bytes()
            else:
                pair.image.write_bytes(pictures[size])
    start = time.perf_counter()
    index = build_index("voc", pairs, tmp_path / "cache")
    seconds = time.perf_counter() - start
    assert seconds < 60, f"{seconds:.1f} s for {sum(map(len, pairs.values()))} masks"
    for split in ("train", "val"):
        assert (len(index.presence[split]), digest(index.presence[split])) == golden_list("voc", split)
    checked = 0
    for setting in list_settings():
        steps = golden_steps(setting)
        if setting.dataset != "voc" or steps is None:
            continue
        for step, published in enumerate(steps):
            images = select_images(index.presence["train"], setting, step)
            assert (len(images), digest(images)) == published, f"{setting.name}, step {step}"
            checked += 1
    assert checked > 50
