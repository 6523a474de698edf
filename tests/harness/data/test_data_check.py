"""Data against the published figures: what agrees, the first step that differs, and the cause that is named."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import time
from collections.abc import Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cispbench.harness.data.check import check_data, find_odd_id, likely_causes
from cispbench.harness.data.compare import Comparison, compare
from cispbench.harness.data.index import Presence, build_index, find_broken
from cispbench.harness.data.source import list_data
from cispbench.harness.machine.progress import ProgressView
from cispbench.splits.errors import DataError, SettingError
from cispbench.splits.selection import digest, golden_settings, select_images
from cispbench.splits.settings import parse_setting

VOC_STEPS, ADE_STEPS = 324, 89


@cache
def read_list(path: Path) -> dict[str, frozenset[int]]:
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {image: frozenset(int(index) + 1 for index in indices) for image, *indices in rows}


def presence_of(shared: Path, dataset: str) -> dict[str, dict[str, frozenset[int]]]:
    """Every image's classes as a source would give them, in dicts of the test's own."""
    folder = shared / "data" / "class-presence"
    return {split: dict(read_list(folder / f"{dataset}_{split}.txt")) for split in ("train", "val")}


def judge(dataset: str, presence: Presence, unlisted: Set[str] = frozenset()) -> tuple[Comparison, str]:
    comparison = compare(dataset, presence, golden_settings(dataset))
    return comparison, "\n".join(likely_causes(comparison, presence, unlisted))


def differing(comparison: Comparison) -> dict[str, str]:
    """Return the first step that differs of each setting that does."""
    firsts = {check.setting.name: check.first_difference for check in comparison.settings}
    return {name: first.name for name, first in firsts.items() if first is not None}


def assert_recorded(golden: Path, comparison: Comparison, presence: Mapping[str, Set[int]]) -> None:
    """Every count and digest recorded from the released code, without a detour by the shipped ones."""
    recorded = json.loads((golden / "splits.json").read_text())[comparison.dataset]
    found = {part.name: part.found for part in comparison.lists}
    assert found == {split: (recorded[f"{split}_images"], recorded[f"{split}_sha256"]) for split in ("train", "val")}
    partitions = recorded.get("mib_partition", {})
    settings = {check.setting.name: check for check in comparison.settings}
    expected = {name: entry["train"] for name, entry in recorded["settings"].items()}
    for title, entries in json.loads((golden / "partitioned_splits.json").read_text()).items():
        if title.startswith(comparison.dataset):
            expected[parse_setting(title.replace(" seed ", "-s")).name] = entries
    assert settings.keys() == expected.keys() | {f"partitioned-{task}" for task in partitions}
    for name, entries in expected.items():
        assert [step.found for step in settings[name].steps] == [
            (step["images"], step["sha256"]) for step in entries
        ], name
    for task, steps in partitions.items():
        (whole,) = settings[f"partitioned-{task}"].steps
        assert whole.found[0] == sum(step["images"] for step in steps)
        overlapped = parse_setting(f"overlapped-{task}")
        for step, entry in enumerate(steps):
            # The lists cannot be known: a step has the images with its classes alone, and none without its classes.
            alone = sum(classes <= set(overlapped.steps[step].classes) for classes in presence.values() if classes)
            assert alone <= entry["images"] <= len(select_images(presence, overlapped, step))


@pytest.mark.golden
@pytest.mark.parametrize(("dataset", "settings", "steps"), [("voc", 52, VOC_STEPS), ("ade", 18, ADE_STEPS + 3)])
def test_the_data_set_agrees_with_every_recorded_figure(
    shared: Path, golden: Path, dataset: str, settings: int, steps: int
) -> None:
    presence = presence_of(shared, dataset)
    comparison, causes = judge(dataset, presence)
    assert comparison.agrees and not differing(comparison) and causes == ""
    assert (len(comparison.settings), sum(len(check.steps) for check in comparison.settings)) == (settings, steps)
    assert_recorded(golden, comparison, presence["train"])


@pytest.mark.golden
def test_the_real_masks_as_a_users_data_set(shared: Path, golden: Path, tmp_path: Path) -> None:
    folder, recorded = tmp_path / "VOC2012", presence_of(shared, "voc")
    with tarfile.open(shared / "data" / "voc-masks.tar") as archive:
        archive.extractall(folder / "SegmentationClassAug", filter="data")
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, name in (("train", "train_aug"), ("val", "val")):
        (folder / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(recorded[split]))
    start = time.perf_counter()
    report = check_data("voc", tmp_path, tmp_path / "cache", ProgressView(), masks_only=True)
    seconds = time.perf_counter() - start
    assert report.comparison is not None and report.index is not None
    assert sum(map(len, report.index.presence.values())) == 12_031
    assert seconds < 60, f"{seconds:.1f} s for 12,031 masks on {os.cpu_count()} cores"
    assert_recorded(golden, report.comparison, report.index.presence["train"])
    assert report.agrees and report.index.presence == recorded


@pytest.mark.golden
def test_one_image_too_many_is_named(shared: Path) -> None:
    presence = presence_of(shared, "voc")
    presence["train"]["2099_000001"] = frozenset({3})
    comparison, causes = judge("voc", presence)
    assert causes == "2099_000001 is too many on the train list; all others agree."
    # A bird comes with step 1 of 2-2 and 2-1 and with step 0 of the other natural orders, whatever the scenario.
    first = differing(comparison)
    assert [part.name for part in comparison.lists if not part.agrees] == ["train"]
    assert first["overlapped-2-1"] == first["disjoint-2-2"] == "1"
    assert first["overlapped-15-1"] == first["disjoint-10-1"] == "0"
    assert first["overlapped-15-1-c"] == "0"


@pytest.mark.golden
def test_one_missing_image_is_named_where_its_mask_is_left(shared: Path) -> None:
    presence = presence_of(shared, "ade")
    del presence["train"]["ADE_train_00000010"]
    comparison, causes = judge("ade", presence, {"ADE_train_00000010"})
    assert causes == "missing on the train list, though their masks are there: ADE_train_00000010."
    assert "overlapped-100-50" in differing(comparison) and "partitioned-100-50" in differing(comparison)
    assert likely_causes(comparison, presence, {"ADE_train_00000010", "ADE_train_99999999"}) == [
        "ADE_train_00000010 is missing on the train list; all others agree."
    ]
    (cause,) = likely_causes(comparison, presence)
    assert "a part of ADE20K (20,209 of 20,210 train images)" in cause


@pytest.mark.golden
def test_missing_images_are_named_where_their_masks_are_left(shared: Path) -> None:
    presence = presence_of(shared, "voc")
    gone = sorted(presence["val"])[40:47]
    for image_id in gone:
        del presence["val"][image_id]
    comparison, causes = judge("voc", presence, set(gone))
    assert causes == f"missing on the val list, though their masks are there: {', '.join(gone[:5])} and 2 more."
    # Settings are a matter of training images alone; the data do not agree all the same.
    assert not differing(comparison) and not comparison.agrees


@pytest.mark.golden
@pytest.mark.parametrize(
    ("image_id", "classes", "says", "first"),
    [
        ("2008_001068", {13, 15, 9}, "that of 2008_001068 should not hold chair", {"2-1": "7", "15-1": None}),
        ("2008_001068", {15}, "that of 2008_001068 should hold horse", {"2-1": "11", "5-1": "8"}),
        ("2008_001068", {13, 15, 20}, "that of 2008_001068 should not hold tvmonitor", {"19-1": "1", "15-1": "5"}),
        ("2007_000063", {12}, "that of 2007_000063 should hold chair", {"2-1": "7"}),
    ],
)
def test_a_mask_with_other_classes_is_named(
    shared: Path, image_id: str, classes: set[int], says: str, first: dict[str, str | None]
) -> None:
    presence = presence_of(shared, "voc")
    assert presence["train"][image_id] != classes
    presence["train"][image_id] = frozenset(classes)
    comparison, causes = judge("voc", presence)
    assert causes == f"the lists agree, so masks hold other classes than published: {says}."
    assert all(part.agrees for part in comparison.lists)
    found = differing(comparison)
    assert {task: found.get(f"overlapped-{task}") for task in first} == first


@pytest.mark.golden
def test_two_changed_masks_are_both_named(shared: Path) -> None:
    presence = presence_of(shared, "voc")
    presence["train"]["2008_001068"] -= {13}
    presence["train"]["2007_000063"] |= {1}
    _, causes = judge("voc", presence)
    named = {"that of 2008_001068 should hold horse", "that of 2007_000063 should not hold aeroplane"}
    assert set(causes.partition("published: ")[2].rstrip(".").split("; ")) == named


@pytest.mark.golden
def test_a_changed_mask_is_told_as_far_as_the_settings_reach(shared: Path) -> None:
    presence = presence_of(shared, "voc")
    step = [parse_setting("overlapped-15-5")]
    presence["train"]["2008_001068"] |= {17}
    (cause,) = likely_causes(compare("voc", presence, step), presence)
    assert cause.endswith("that of 2008_001068 should not hold sheep.")
    presence["train"]["2008_001068"] -= {17}
    assert compare("voc", presence, step).agrees
    presence["train"]["2007_000039"] = frozenset({1})
    (cause,) = likely_causes(compare("voc", presence, step), presence)
    assert "that of 2007_000039 should hold pottedplant or sheep or sofa or train or tvmonitor" in cause


@pytest.mark.golden
def test_masks_that_lost_small_objects_or_are_numbered_otherwise(shared: Path) -> None:
    presence = presence_of(shared, "ade")
    drop = {image: frozenset(list(classes)[::2]) for image, classes in presence["train"].items()}
    _, causes = judge("ade", presence | {"train": drop})
    assert "they hold fewer classes, as they do when resized" in causes
    zero = {image: frozenset(number - 1 for number in classes) - {0} for image, classes in presence["train"].items()}
    comparison, causes = judge("ade", presence | {"train": zero})
    assert "classes are in no train mask: 150 (flag); are the numbers" in causes
    assert all(part.agrees for part in comparison.lists)


@pytest.mark.golden
def test_lists_taken_for_the_right_ones(shared: Path) -> None:
    presence = presence_of(shared, "voc")
    short = dict(sorted(presence["train"].items())[:1464])
    comparison, causes = judge("voc", presence | {"train": short})
    assert causes == "the train list has 1,464 images, as many as VOC 2012's own train list; train_aug has 10,582."
    assert {check.published[0]: check.found[0] for check in comparison.lists} == {10582: 1464, 1449: 1449}
    _, causes = judge("voc", presence | {"train": presence["train"] | presence["val"]})
    assert "images on both lists, so that test images are trained on: 2007_000033" in causes
    assert "and 1,444 more" in causes and "the train list has 1,449 images too many" in causes
    renamed = {f"{image}.png": classes for image, classes in presence["train"].items()}
    _, causes = judge("voc", presence | {"train": renamed})
    assert "as many images as published, but not the same ones" in causes
    assert "10,582 ids are none of PASCAL VOC 2012, such as '2007_000032.png'" in causes


@pytest.mark.golden
def test_a_part_of_the_data_set_cannot_agree(shared: Path, tmp_path: Path) -> None:
    settings = [parse_setting("overlapped-15-1")]
    report = check_data("voc", shared / "data" / "voc-mini", tmp_path, ProgressView(), settings=settings)
    assert not report.agrees and report.comparison is not None
    assert report.causes == (
        "this is a part of PASCAL VOC 2012 (1,028 of 10,582 train images and 467 of 1,449 val images)"
        " and so cannot agree with what is published for the whole.",
    )
    assert differing(report.comparison) == {"overlapped-15-1": "0"}


NAMES = st.text("ab", min_size=1, max_size=4)


@given(st.sets(NAMES, max_size=8), NAMES, st.booleans())
def test_find_odd_id_agrees_with_a_slow_search(ids: set[str], other: str, add: bool) -> None:
    published = ids | {other} if add else ids - {other}
    figures = (len(published), digest(published))
    candidates = ["aaaa", *sorted({"b", "ba", other} if add else ids)]
    odd = find_odd_id(ids, figures, [name for name in candidates if (name in ids) != add])
    if published == ids:
        assert odd is None
    else:
        assert odd == other and digest(ids ^ {other}) == figures[1]
    assert find_odd_id(ids, (figures[0], hashlib.sha256(b"?").hexdigest()), candidates) is None


def test_a_setting_without_figures() -> None:
    nothing: Any = {"train": {}, "val": {}}
    with pytest.raises(SettingError, match=r"no figures are published for overlapped-15-1-w.*overlapped-15-1-g"):
        compare("voc", nothing, [parse_setting("overlapped-15-1-w")])


def write_masks(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((4, 6), number + 1, np.uint8)).save(path)
    return paths


def test_masks_and_lists_are_enough(tmp_path: Path) -> None:
    write_masks(tmp_path / "voc" / "SegmentationClassAug", 5)
    lists = tmp_path / "voc" / "list"
    lists.mkdir()
    (lists / "train_aug.txt").write_text("/JPEGImages/0.jpg /SegmentationClassAug/0.png\n1\n\n2\n")
    (lists / "val.txt").write_text("3\n")
    with pytest.raises(DataError, match="no folder JPEGImages"):
        check_data("voc", tmp_path / "voc", tmp_path / "cache", ProgressView())
    report = check_data("voc", tmp_path / "voc", tmp_path / "cache", ProgressView(), masks_only=True, decode=True)
    assert report.index is not None and not report.broken and not report.agrees
    assert report.index.presence["train"] == {"0": {1}, "1": {2}, "2": {3}}
    for name, count in (("training", 3), ("validation", 2)):
        write_masks(tmp_path / "ade" / "annotations" / name, count)
    report = check_data("ade", tmp_path / "ade", tmp_path / "cache", ProgressView(), masks_only=True)
    assert report.index is not None and report.index.presence["val"] == {"0": {1}, "1": {2}}
    (tmp_path / "ade" / "annotations" / "training" / "1.png").write_bytes(b"no mask")
    with pytest.raises(DataError, match=r"training/1\.png is no PNG"):
        check_data("ade", tmp_path / "ade", tmp_path / "cache", ProgressView(), masks_only=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no list of train images: looked for .*train_aug.txt and .*list/train_aug.txt"),
        (b" \n", "train_aug.txt is empty"),
        (b"0\n1\n0\n", "line 3: the id '0' occurs twice"),
        (b"0\n1 2 3\n", "line 2: '1 2 3' is neither an id nor"),
        (b"\xff\xfe", "train_aug.txt cannot be read"),
        (b"0\n7\n", "mask .*7.png does not exist"),
    ],
)
def test_lists_of_masks_that_break_a_rule(tmp_path: Path, text: bytes | None, message: str) -> None:
    write_masks(tmp_path / "SegmentationClassAug", 2)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("1\n")
    if text is not None:
        (lists / "train_aug.txt").write_bytes(text)
    with pytest.raises(DataError, match=message):
        check_data("voc", tmp_path, tmp_path / "cache", ProgressView(), masks_only=True)
    (tmp_path / "annotations" / "training").mkdir(parents=True)
    with pytest.raises(DataError, match=r"annotations/training holds no \.png"):
        list_data("ade", tmp_path, masks_only=True)


def test_masks_alone_have_a_fingerprint_of_their_own(own_voc: Path, tmp_path: Path) -> None:
    _, pairs = list_data("voc", own_voc)
    assert list_data("voc", own_voc, masks_only=True) == (own_voc, pairs)
    whole = build_index("voc", pairs, tmp_path / "cache")
    alone = build_index("voc", pairs, tmp_path / "cache", masks_only=True)
    assert alone.presence == whole.presence
    assert alone.fingerprint != whole.fingerprint and alone.path != whole.path
    assert not whole.cached and build_index("voc", pairs, tmp_path / "cache").cached
    assert whole.path.is_file()


def test_decoding_names_every_broken_file(own_voc: Path) -> None:
    _, pairs = list_data("voc", own_voc)
    assert find_broken("voc", pairs) == []
    for number in range(7):
        path = own_voc / "JPEGImages" / f"t00{number}.jpg"
        path.write_bytes(path.read_bytes()[:-40])
    (own_voc / "SegmentationClassAug" / "t000.png").unlink()
    errors = find_broken("voc", pairs)
    named = ["JPEGImages/t000.jpg", "JPEGImages/t006.jpg", "SegmentationClassAug/t000.png does not exist"]
    assert len(errors) == 8 and all(any(name in error.message for error in errors) for name in named)
    assert len(find_broken("voc", pairs, masks_only=True)) == 1
