"""Layouts, lists and where data are looked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cispbench.harness.data.source import FolderSource, find_source, locate, not_found
from cispbench.splits.errors import DataError, SettingError
from cispbench.splits.selection import digest

SPLITS = {"train": ("t1", "t2", "t3"), "val": ("v1", "v2")}


def write_image(image: Path, mask: Path, number: int) -> None:
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (number, ord(image.stem[0]), 0)).save(image)
    values = np.zeros((6, 8), np.uint8)
    values[2:4, 3:5], values[0, 0] = number, 255
    Image.fromarray(values).save(mask)


def write_voc(folder: Path) -> Path:
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, name in (("train", "train_aug"), ("val", "val")):
        (lists / f"{name}.txt").write_text("\n".join(reversed(SPLITS[split])) + "\n\n", encoding="utf-8")
        for number, stem in enumerate(SPLITS[split], start=1):
            write_image(folder / "JPEGImages" / f"{stem}.jpg", folder / "SegmentationClassAug" / f"{stem}.png", number)
    return folder


def write_ade(folder: Path) -> Path:
    for split, name in (("train", "training"), ("val", "validation")):
        for number, stem in enumerate(SPLITS[split], start=1):
            image = folder / "images" / name / f"{stem}.jpg"
            write_image(image, folder / "annotations" / name / f"{stem}.png", number + 100)
    return folder


def check(source: FolderSource, dataset: str) -> None:
    offset = 0 if dataset == "voc" else 100
    assert (source.dataset, source.kind) == (dataset, "mini")
    for split, ids in SPLITS.items():
        assert source.ids(split) == ids
        assert source.presence(split) == {
            stem: frozenset({offset + number}) for number, stem in enumerate(ids, start=1)
        }
        for number, stem in enumerate(ids, start=1):
            image, mask = source.read(split, stem)
            assert image.shape == (3, 6, 8)
            assert sorted(set(mask.flatten().tolist())) == [0, offset + number, 255]


@pytest.mark.parametrize("below", ["VOCdevkit/VOC2012", "VOC2012", "."])
def test_voc_layouts(tmp_path: Path, below: str) -> None:
    write_voc(tmp_path / "root" / below)
    check(find_source("voc", tmp_path / "root", tmp_path / "cache"), "voc")


@pytest.mark.parametrize("below", ["ADEChallengeData2016", "."])
def test_ade_layouts(tmp_path: Path, below: str) -> None:
    folder = write_ade(tmp_path / "root" / below)
    (folder / "annotations" / "training" / "Thumbs.db").write_text("x", encoding="utf-8")
    check(find_source("ade", tmp_path / "root", tmp_path / "cache"), "ade")


@pytest.mark.parametrize("slash", ["/", ""])
def test_pairs_of_paths_as_in_mib(tmp_path: Path, slash: str) -> None:
    folder = write_voc(tmp_path)
    (folder / "ImageSets").rename(folder / "gone")
    (folder / "list").mkdir()
    (folder / "SegmentationClassAug").rename(folder / "Masks")
    (folder / "SegmentationClassAug").mkdir()
    for split, name in (("train", "train_aug"), ("val", "val")):
        lines = [f"{slash}JPEGImages/{stem}.jpg {slash}Masks/{stem}.png" for stem in SPLITS[split]]
        (folder / "list" / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    check(find_source("voc", tmp_path, tmp_path / "cache"), "voc")


def test_lists_may_lie_in_both_places(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    (folder / "list").mkdir()
    (folder / "ImageSets" / "Segmentation" / "train_aug.txt").rename(folder / "list" / "train_aug.txt")
    check(find_source("voc", tmp_path, tmp_path / "cache"), "voc")


def test_order_of_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, named, default = tmp_path / "given", tmp_path / "named", tmp_path / "here" / "data"
    for root in (given, named, default):
        write_voc(root / "VOC2012")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("CISPBENCH_DATA", raising=False)
    assert locate("voc", None) == Path("data") / "VOC2012"
    monkeypatch.setenv("CISPBENCH_DATA", str(named))
    assert locate("voc", None) == named / "VOC2012"
    assert locate("voc", given) == given / "VOC2012"
    assert locate("ade", given) is None
    # An explicit place that is empty is not passed over for one further down the order.
    assert locate("voc", tmp_path / "here") is None
    monkeypatch.setenv("CISPBENCH_DATA", str(tmp_path / "nowhere"))
    assert locate("voc", None) is None


def test_nothing_found_says_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as caught:
        find_source("voc", tmp_path, tmp_path / "cache")
    text = str(caught.value)
    for words in (
        "PASCAL VOC 2012",
        "--data-root",
        str(tmp_path / "VOCdevkit" / "VOC2012"),
        str(tmp_path / "VOC2012"),
        "JPEGImages",
        "SegmentationClassAug",
        "VOCtrainval_11-May-2012.tar",
        "train_aug.txt",
        "CISPBENCH_DATA",
    ):
        assert words in text
    monkeypatch.setenv("CISPBENCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere \(CISPBENCH_DATA\) does not exist.*ADEChallengeData2016.zip"):
        find_source("ade", None, tmp_path / "cache")
    monkeypatch.delenv("CISPBENCH_DATA")
    assert "data (the default)" in str(not_found("ade", None))


def test_unknown_data_set(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="Did you mean 'voc'"):
        locate("vocc", tmp_path)


def test_incomplete_data_are_found_and_refused(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "VOC2012")
    (folder / "SegmentationClassAug").rename(folder / "SegmentationClass")
    assert locate("voc", tmp_path) == folder
    with pytest.raises(DataError, match=r"VOC2012 holds no folder SegmentationClassAug.*SegmentationClassAug.zip"):
        find_source("voc", tmp_path, tmp_path / "cache")


def set_list(folder: Path, text: str | bytes | None) -> Path:
    path = folder / "ImageSets" / "Segmentation" / "train_aug.txt"
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no list of train images: looked for .*ImageSets/Segmentation/train_aug.txt and .*list/train_aug.txt"),
        ("\n \n", r"train_aug.txt is empty"),
        ("t1\nt2\n\nt1\n", r"train_aug.txt, line 4: the id 't1' occurs twice"),
        ("t1\nJPEGImages/t2.jpg\n", r"line 2: 'JPEGImages/t2.jpg' is neither an id nor"),
        ("t1 t2 t3\n", r"line 1: 't1 t2 t3' is neither an id nor"),
        (b"t1\x0bt2\n", r"line 1: 't1\\x0bt2' holds a character that cannot be printed"),
        (b"t1\n\x08t2\n", r"line 2: '\\x08t2' holds a character that cannot be printed"),
        (b"\xff\xfe\x00", r"train_aug.txt cannot be read"),
    ],
)
def test_lists_that_break_a_rule(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    set_list(write_voc(tmp_path), text)
    with pytest.raises(DataError, match=message) as caught:
        find_source("voc", tmp_path, tmp_path / "cache")
    assert caught.value.hint


def test_a_list_with_the_line_ends_of_windows_is_read(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    path = folder / "ImageSets" / "Segmentation" / "train_aug.txt"
    ids = find_source("voc", tmp_path, tmp_path / "cache").ids("train")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert find_source("voc", tmp_path, tmp_path / "cache").ids("train") == ids


def test_ade_parts_that_are_missing(tmp_path: Path) -> None:
    folder = write_ade(tmp_path)
    (folder / "annotations" / "training" / "t2.png").unlink()
    with pytest.raises(DataError, match=r"the mask .*t2.png does not exist"):
        find_source("ade", tmp_path, tmp_path / "cache")
    (folder / "images" / "training" / "t2.jpg").unlink()
    (folder / "images" / "training" / "t3.jpg").unlink()
    with pytest.raises(DataError, match=r"the image .*t3.jpg does not exist"):
        find_source("ade", tmp_path, tmp_path / "cache")
    for path in (folder / "images" / "validation").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"validation holds no .jpg file"):
        find_source("ade", tmp_path, tmp_path / "cache")
    (folder / "images" / "validation").rmdir()
    with pytest.raises(DataError, match=r"validation does not exist.*ADEChallengeData2016.zip"):
        find_source("ade", tmp_path, tmp_path / "cache")


def test_unknown_id(tmp_path: Path) -> None:
    source = find_source("voc", write_voc(tmp_path), tmp_path / "cache")
    with pytest.raises(DataError, match=r"no train image 'v1'.*3 images"):
        source.read("train", "v1")


def test_an_image_on_both_lists_is_refused(tmp_path: Path) -> None:
    set_list(write_voc(tmp_path), "t1\nt2\nv2\n")
    with pytest.raises(DataError, match=r"images on both lists of .*: 1, such as 'v2'") as caught:
        find_source("voc", tmp_path, tmp_path / "cache")
    assert caught.value.hint


def test_splits_that_are_numbered_alike_are_read(tmp_path: Path) -> None:
    folder = write_ade(tmp_path)
    for part, suffix in (("images", "jpg"), ("annotations", "png")):
        for number in (1, 2):
            (folder / part / "validation" / f"v{number}.{suffix}").rename(
                folder / part / "validation" / f"t{number}.{suffix}"
            )
    source = find_source("ade", tmp_path, tmp_path / "cache")
    assert source.ids("val") == ("t1", "t2") and source.ids("train") == ("t1", "t2", "t3")


@pytest.mark.parametrize("kind", ["mini", "full"])
def test_a_test_image_among_the_training_images_is_told(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published data may hold an image twice, so that it is not refused."""
    from cispbench.harness.data import source as module

    if kind == "full":
        published = {split: (len(ids), digest(ids)) for split, ids in SPLITS.items()}
        monkeypatch.setattr(module, "golden_list", lambda dataset, split: published[split])
    images = write_voc(tmp_path) / "JPEGImages"
    (images / "t3.jpg").write_bytes((images / "v1.jpg").read_bytes())
    with pytest.warns(UserWarning, match="training images, too: 1, such as v1, which is t3"):
        assert find_source("voc", tmp_path, tmp_path / "cache").kind == kind


def test_the_published_lists_make_data_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cispbench.harness.data import source as module

    published = {split: (len(ids), digest(ids)) for split, ids in SPLITS.items()}
    write_voc(tmp_path)
    monkeypatch.setattr(module, "golden_list", lambda dataset, split: published[split])
    assert find_source("voc", tmp_path, tmp_path / "cache").kind == "full"
    published["val"] = (2, digest(["v1", "v3"]))
    assert find_source("voc", tmp_path, tmp_path / "cache").kind == "mini"


def test_real_images_agree_with_the_recorded_presence(shared: Path, tmp_path: Path) -> None:
    source = find_source("voc", shared / "data" / "voc-mini", tmp_path)
    assert source.kind == "mini"
    assert (len(source.ids("train")), len(source.ids("val"))) == (1028, 467)
    for split in SPLITS:
        lines = (shared / "data" / "class-presence" / f"voc_{split}.txt").read_text(encoding="utf-8").splitlines()
        recorded = {line.split()[0]: frozenset(int(word) + 1 for word in line.split()[1:]) for line in lines}
        found = source.presence(split)
        # The masks are smaller than those of the record: a class of a few pixels may be gone, none may be new.
        assert all(classes <= recorded[image_id] for image_id, classes in found.items())
        equal = sum(classes == recorded[image_id] for image_id, classes in found.items())
        assert equal >= 0.98 * len(found)
    image, mask = source.read("val", source.ids("val")[0])
    assert image.shape[1:] == mask.shape and min(mask.shape) == 256
