"""Data that break a rule: exit code 1, one message with the file, the rule and the cure, and no record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

IMAGE, MASK = "JPEGImages/t003.jpg", "SegmentationClassAug/t003.png"
TEST_IMAGE = "JPEGImages/v003.jpg"
TRAIN_LIST, TEST_LIST = "ImageSets/Segmentation/train_aug.txt", "ImageSets/Segmentation/val.txt"


def failed(commands: Any, words: list[str], *says: str) -> str:
    message: str = commands.refused(1, words, *says)
    assert commands.records() == {}
    assert commands.leftovers() == []
    return message


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def paint(path: Path, *shape: int, value: int = 0) -> None:
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        (MASK, Path.unlink, "does not exist"),
        (IMAGE, Path.unlink, "does not exist"),
        (MASK, lambda path: paint(path, 10, 12), "10 x 12 pixels"),
        (MASK, lambda path: paint(path, 48, 64, 3), "8-bit RGB"),
        (MASK, lambda path: paint(path, 48, 64, value=77), "value 77"),
        (MASK, lambda path: Image.fromarray(np.zeros((48, 64), np.uint16)).save(path), "16-bit"),
        (MASK, half, "truncated"),
        (MASK, lambda path: path.write_bytes(b""), "no PNG"),
        (IMAGE, lambda path: path.write_text("no picture"), "neither a JPEG nor a PNG"),
        (IMAGE, half, "truncated"),
        (TEST_IMAGE, half, "truncated"),
        (TRAIN_LIST, Path.unlink, "no list of train images"),
        (TEST_LIST, Path.unlink, "no list of val images"),
        (TRAIN_LIST, lambda path: path.write_text("\n"), "is empty"),
        (TEST_LIST, lambda path: path.write_text(""), "is empty"),
        (TRAIN_LIST, lambda path: path.write_text("t000\nt000\n"), "line 2"),
        (TRAIN_LIST, lambda path: path.write_text("t000\nt999\n"), "t999.jpg does not exist"),
    ],
)
def test_a_broken_file_is_named(
    broken: Any, own_voc: Path, file: str, damage: Callable[[Path], None], says: str
) -> None:
    damage(own_voc / file)
    # More iterations than images: each one is read in step 0.
    message = failed(broken, broken.tiny(iterations=(6, 2)), says)
    assert (str(own_voc / file) if "t999" not in says else "t999") in message
    assert message.count(". ") >= 1, "what to do is missing"


def test_after_the_repair_the_same_command_ends_as_if_nothing_had_been(
    broken: Any, own_voc: Path, commands: Any, tmp_path: Path
) -> None:
    whole = (own_voc / TEST_IMAGE).read_bytes()
    half(own_voc / TEST_IMAGE)
    failed(broken, broken.tiny())
    (own_voc / TEST_IMAGE).write_bytes(whole)
    broken.succeed(broken.tiny())
    repaired = broken.outcome()
    commands.out, commands.steps = tmp_path / "other-out", tmp_path / "other-steps"
    commands.succeed(commands.tiny())
    assert repaired == commands.outcome()
    assert len(repaired) == 2


@pytest.mark.parametrize("make", [lambda root: None, Path.mkdir])
def test_a_root_without_data_says_where_it_was_looked_for_and_how_to_get_them(
    commands: Any, make: Callable[[Path], None]
) -> None:
    root = commands.home / "nowhere"
    make(root)
    commands.data = root
    for profile in ("mini", "paper"):
        message = failed(commands, commands.tiny("--profile", profile), "PASCAL VOC 2012", str(root), "--data-root")
        assert "VOCtrainval_11-May-2012.tar" in message
    assert not commands.out.exists()


def test_another_data_set_is_not_taken_for_the_one_asked_for(commands: Any) -> None:
    message = failed(commands, commands.tiny("--setting", "overlapped-100-50"), "ADE20K", str(commands.data))
    assert "ADEChallengeData2016" in message


def test_a_step_without_images_is_found_before_anything_is_trained(broken: Any, own_voc: Path) -> None:
    # Neither of the two holds class 20, which is what step 1 learns.
    (own_voc / TRAIN_LIST).write_text("t000\nt002\n")
    failed(broken, broken.tiny(), "step 1", "overlapped-19-1")
    assert not list(broken.steps.glob("steps/*"))


def test_a_loss_that_is_no_number_ends_the_step_without_a_record(commands: Any) -> None:
    words = commands.tiny("--set", "optim.lr=1000", "--set", "optim.clip=null", iterations=(30, 2))
    message = failed(commands, words, "not a finite number", "step 0")
    assert "learning rate" in message
