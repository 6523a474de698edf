"""``cispbench data check`` and ``cispbench data index`` as their user meets them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cispbench.harness.data.index_file import load_entries, save_entries, stamp_of
from cispbench.harness.data.source import find_source, list_data
from cispbench.splits import selection
from cispbench.splits.selection import digest, select_images
from cispbench.splits.settings import parse_setting

SETTINGS = ("overlapped-19-1", "disjoint-15-1", "overlapped-15-1-b")
TRAIN_LIST = "ImageSets/Segmentation/train_aug.txt"


def entry(ids: Any) -> dict[str, Any]:
    return {"images": len(ids), "sha256": digest(ids)}


def write_ade(root: Path) -> Path:
    folder = root / "ADEChallengeData2016"
    for name, count in (("training", 4), ("validation", 2)):
        for part, suffix in (("images", "jpg"), ("annotations", "png")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                mask = np.full((6, 8), 40 * number + 1, np.uint8)
                Image.fromarray(mask).save(folder / part / name / f"{name[0]}{number}.{suffix}")
    return root


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, voc: Path, tmp_path: Path) -> dict[str, Any]:
    """Make the small VOC of the tests the published one, in a few settings."""
    source = find_source("voc", voc, tmp_path / "published")
    presence = source.presence("train")
    steps = {
        name: [entry(select_images(presence, parse_setting(name), step.index)) for step in parse_setting(name).steps]
        for name in SETTINGS
    }
    figures = {"train": entry(source.ids("train")), "val": entry(source.ids("val")), "settings": steps}
    ade = dict(selection._golden("ade"))
    monkeypatch.setattr(selection, "_golden", lambda name: {"voc": figures, "ade": ade}[name])
    return figures


def check(*more: str, root: Path | None = None) -> list[str]:
    return ["data", "check", *(["--data-root", str(root)] if root else []), *more]


def differs(commands: Any, words: list[str]) -> str:
    """Return what is printed about data that differ: on standard output, exit code 1, and no error."""
    result = commands.invoke(words)
    assert result.exit_code == 1, result.output
    assert "Error" not in result.output and result.stderr == ""
    text: str = result.stdout
    return text


def test_data_that_agree(commands: Any, published: dict[str, Any]) -> None:
    result = commands.succeed(check(root=commands.data))
    assert "PASCAL VOC 2012 in" in result.stdout and "differs" not in result.stdout
    assert result.stdout.endswith("3 settings, 14 steps agree, and so do the train and val lists.\n")
    result = commands.succeed(check("--setting", SETTINGS[0], "--masks-only", "--decode", root=commands.data))
    assert "masks only" in result.stdout and "1 setting, 2 steps agree" in result.stdout
    assert (commands.home / ".cispbench" / "index").is_dir()


def test_json_of_data_that_agree(commands: Any, published: dict[str, Any]) -> None:
    words = check("--json", "--dataset", "voc", "--steps-dir", str(commands.steps), root=commands.data)
    (found,) = json.loads(commands.succeed(words).stdout)["datasets"]
    assert found["agrees"] and found["causes"] == found["broken"] == []
    assert {part["list"]: part["found"] for part in found["lists"]} == {s: published[s] for s in ("train", "val")}
    assert {s["setting"]: [step["found"] for step in s["steps"]] for s in found["settings"]} == published["settings"]
    assert [step["step"] for step in found["settings"][1]["steps"]] == [0, 1, 2, 3, 4, 5]
    assert list((commands.steps / "index").iterdir())


def test_an_image_taken_off_the_list(broken: Any, own_voc: Path, published: dict[str, Any]) -> None:
    names = (own_voc / TRAIN_LIST).read_text().split()
    names.remove("t005")
    (own_voc / TRAIN_LIST).write_text("\n".join(names))
    text = differs(broken, check(root=broken.data))
    assert "| train list" in text and "| val list" not in text
    row = next(line for line in text.splitlines() if "overlapped-19-1" in line)
    images = published["settings"]["overlapped-19-1"][0]["images"]
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["0 of 0..1", str(images), str(images - 1)]
    assert "Likely cause: missing on the train list, though their masks are there: t005." in text
    assert text.splitlines()[-1].endswith("steps agree; lists that differ: voc train.")
    result = broken.invoke(check("--json", root=broken.data))
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and not found["agrees"]
    train = found["datasets"][0]["lists"][0]
    assert (train["published"], train["found"]["images"]) == (published["train"], 11)


def test_a_mask_with_another_class(broken: Any, own_voc: Path, published: dict[str, Any]) -> None:
    mask = own_voc / "SegmentationClassAug" / "t004.png"
    classes = set(np.unique(np.asarray(Image.open(mask)))) - {0, 255}
    assert 20 not in classes
    values = np.array(Image.open(mask))
    values[-1, -1] = 20
    Image.fromarray(values).save(mask)
    text = differs(broken, check(root=broken.data))
    assert "list " not in text.partition("Likely")[0]
    assert "| overlapped-19-1 | 1 of 0..1 " in text
    assert "that of t004 should not hold tvmonitor." in text


def test_other_ids_in_equal_number(broken: Any, own_voc: Path, published: dict[str, Any]) -> None:
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClassAug", "png")):
        (own_voc / folder / f"t001.{suffix}").rename(own_voc / folder / f"other.{suffix}")
    (own_voc / TRAIN_LIST).write_text((own_voc / TRAIN_LIST).read_text().replace("t001", "other"))
    text = differs(broken, check(root=broken.data))
    assert "12, not the same ones" in text and "as many images as published, but not the same ones" in text


def test_an_ade_folder_of_ones_own(commands: Any, tmp_path: Path) -> None:
    root = write_ade(tmp_path / "ade")
    text = differs(commands, check(root=root))
    assert "ADE20K in" in text and "20,210" in text
    assert "6 ids are none of ADE20K, such as 't0'" in text
    assert "partitioned-100-50" in text and "Compared by their number of images alone" in text
    assert text.splitlines()[-1] == "0 of 18 settings, 0 of 92 steps agree; lists that differ: ade train, ade val."


def test_whatever_is_found_is_checked(broken: Any, own_voc: Path, published: dict[str, Any]) -> None:
    write_ade(broken.data)
    text = differs(broken, check(root=broken.data))
    assert text.index("PASCAL VOC 2012 in") < text.index("ADE20K in")
    assert "3 of 21 settings, 14 of 106 steps agree; lists that differ: ade train, ade val." in text
    assert "ADE20K" not in broken.succeed(check("--setting", "disjoint-15-1", root=broken.data)).stdout
    text = differs(broken, check("--setting", "disjoint-15-1", "--setting", "overlapped-50-50", root=broken.data))
    assert "1 of 2 settings, 6 of 9 steps agree; lists that differ: ade train, ade val." in text
    assert "ADE20K" not in broken.succeed(check("--dataset", "voc", root=broken.data)).stdout


def test_broken_files_are_all_named(broken: Any, own_voc: Path, published: dict[str, Any]) -> None:
    broken.succeed(check("--decode", root=broken.data))
    for number in range(7):
        path = own_voc / "JPEGImages" / f"t00{number}.jpg"
        path.write_bytes(path.read_bytes()[:-40])
    broken.succeed(check(root=broken.data))
    text = differs(broken, check("--decode", root=broken.data))
    assert [f"t00{number}.jpg" in text for number in range(7)] == [True] * 7
    assert "3 of 3 settings, 14 of 14 steps agree; 7 files broken." in text
    path = own_voc / "SegmentationClassAug" / "v001.png"
    path.write_bytes(path.read_bytes()[:50])
    text = differs(broken, check("--decode", root=broken.data))
    assert "v001.png is truncated" in text and "not compared: repair" in text and "8 files broken" in text


@pytest.mark.parametrize("folder", ["JPEGImages/t003.jpg", "SegmentationClassAug/v002.png"])
def test_a_listed_file_that_is_missing(broken: Any, own_voc: Path, published: dict[str, Any], folder: str) -> None:
    broken.succeed(check(root=broken.data))
    (own_voc / folder).unlink()
    broken.refused(1, check(root=broken.data), f"{folder} does not exist")
    if folder.startswith("JPEG"):
        shutil.rmtree(own_voc / "JPEGImages")
        broken.succeed(check("--masks-only", root=broken.data))


def test_nothing_found(commands: Any) -> None:
    root = commands.home / "empty"
    root.mkdir()
    for command in ("check", "index"):
        message = commands.refused(1, ["data", command, "--data-root", str(root)], "no PASCAL VOC 2012", "no ADE20K")
        assert str(root) in message and "--data-root" in message
    commands.refused(1, check("--dataset", "ade", root=root), "no ADE20K", "ADEChallengeData2016.zip")
    commands.refused(1, check("--setting", "disjoint-100-50", root=root), "no ADE20K")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dataset", "vco"], "Did you mean 'voc'"),
        (["--dataset", "ade", "--setting", "overlapped-15-1"], "is a setting of voc, not of ade"),
        (["--setting", "overlapped-15-1-w"], "no figures are published for overlapped-15-1-w"),
        (["--setting", "overlaped-15-1"], "Did you mean 'overlapped-15-1'"),
    ],
)
def test_words_that_mean_nothing(commands: Any, words: list[str], says: str) -> None:
    commands.refused(2, check(*words, root=commands.data), says)


def test_the_index_is_built_once(commands: Any) -> None:
    words = ["data", "index", "--data-root", str(commands.data), "--steps-dir", str(commands.steps)]
    first = commands.succeed(words).stdout
    assert "18 masks (12 train, 6 val), read in" in first
    (path,) = (commands.steps / "index").iterdir()
    source = find_source("voc", commands.data, commands.steps)
    assert str(path) in first and source.fingerprint in first
    assert "18 masks (12 train, 6 val), found in the cache in" in commands.succeed(words).stdout
    (row,) = json.loads(commands.succeed([*words, "--json", "--dataset", "voc"]).stdout)
    assert (row["masks"], row["cached"], row["fingerprint"]) == ({"train": 12, "val": 6}, True, source.fingerprint)
    assert row["index"] == str(path) and row["seconds"] >= 0


def test_a_file_that_is_not_what_the_index_says_is_told_once(broken: Any, published: dict[str, Any]) -> None:
    words = check(root=broken.data)
    assert "of what was read just now" in broken.succeed(words).stdout
    mask = broken.data / "VOC2012" / "SegmentationClassAug" / "t003.png"
    with Image.open(mask) as image:
        values = np.array(image)
    values[0, 0] = 0  # void before
    Image.fromarray(values).save(mask)
    # As after a fault of the disk, of which the file system knows nothing.
    _, pairs = list_data("voc", broken.data)
    (path,) = (broken.home / ".cispbench" / "index").iterdir()
    entries = load_entries(path, "voc")
    entries["train", "t003"] = replace(entries["train", "t003"], stamp=stamp_of(pairs["train"]["t003"], False))
    save_entries(path, "voc", entries)
    text = differs(broken, words)
    assert f"broken: the mask {mask} holds other bytes than the index says" in text and "1 file broken" in text
    broken.succeed(words)


def test_a_note_names_test_images_that_are_trained_on(broken: Any, published: dict[str, Any]) -> None:
    images = broken.data / "VOC2012" / "JPEGImages"
    shutil.copy(images / "v002.jpg", images / "t005.jpg")
    text = broken.succeed(check(root=broken.data)).stdout
    assert "note: test images that are training images, too: 1, such as v002, which is t005." in text


def test_a_damaged_index_is_told_even_where_all_else_is_quiet(commands: Any) -> None:
    words = ["data", "index", "--data-root", str(commands.data), "--steps-dir", str(commands.steps), "--json"]
    commands.succeed(words)
    (path,) = (commands.steps / "index").iterdir()
    path.write_bytes(path.read_bytes().replace(b"train", b"trane"))
    assert commands.start(words).wait(120) == 0
    assert f"the index {path} is damaged" in commands.read()[1]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["JPEGImages/t003.jpg", "SegmentationClassAug/t003.png"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(broken: Any, name: str) -> None:
    path = broken.data / "VOC2012" / name
    path.unlink()
    os.mkfifo(path)
    broken.refused(1, ["data", "index", "--data-root", str(broken.data)], f"{path} is a pipe, not a plain file")


def test_masks_alone_are_indexed_apart(commands: Any) -> None:
    words = ["data", "index", "--data-root", str(commands.data), "--json"]
    (whole,), (masks,) = (json.loads(commands.succeed([*words, *more]).stdout) for more in ([], ["--masks-only"]))
    assert not masks["cached"] and masks["masks"] == whole["masks"]
    assert masks["fingerprint"] != whole["fingerprint"] and masks["index"] != whole["index"]
