"""`cispbench score`: predictions out of files are counted as a run's own are, and faulty files are named."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cispbench.harness import evaluate
from cispbench.harness.data.synthetic import synthetic_source
from cispbench.harness.data.transforms import EvalTransform, EvalView
from cispbench.results.store import read_record
from cispbench.splits.settings import parse_setting

Pixels = NDArray[np.uint8]
ALL = "overlapped-19-1"


def truth(root: Path) -> dict[str, Pixels]:
    folder = root / "VOC2012"
    names = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    return {name: np.array(Image.open(folder / "SegmentationClassAug" / f"{name}.png")) for name in names}


def guess(mask: Pixels, known: set[int]) -> Pixels:
    """A prediction with faults: shifted by a few pixels, background for void and for what is not known."""
    moved = np.roll(mask, 3, axis=1)
    return np.where(np.isin(moved, sorted(known)), moved, 0).astype(np.uint8)


def save(folder: Path, masks: dict[str, Pixels], palette: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for name, mask in masks.items():
        image = Image.fromarray(mask)
        if palette:
            image.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
        image.save(folder / f"{name}.png")
    return folder


def words(commands: Any, folder: Path, *more: str, setting: str = ALL, step: int = 1) -> list[str]:
    return [
        *("score", "--pred", str(folder), "--setting", setting, "--step", str(step), "--method", "mine", "--model"),
        *("net-1", "--profile", "mini", "--data-root", str(commands.data), *commands.places(), *more),
    ]


def counted(commands: Any) -> NDArray[np.int64]:
    (path,) = commands.records().values()
    return read_record(path).matrix()


def slow_count(pairs: list[tuple[Pixels, Pixels]]) -> NDArray[np.int64]:
    """Rows ground truth, columns predictions, pixel by pixel; void left out."""
    counts = np.zeros((21, 21), np.int64)
    for mask, prediction in pairs:
        for row, column in zip(mask.flatten().tolist(), prediction.flatten().tolist(), strict=True):
            if row != 255:
                counts[row, column] += 1
    return counts


@pytest.mark.parametrize("palette", [False, True])
def test_full_images_are_counted_pixel_by_pixel(commands: Any, palette: bool) -> None:
    masks = truth(commands.data)
    guesses = {name: guess(mask, set(range(20))) for name, mask in masks.items()}
    folder = save(commands.home / "masks", guesses, palette)
    (folder / ".hidden").write_text("not counted")
    result = commands.succeed(words(commands, folder, "--view", "full", step=0))
    assert result.stdout.startswith("mine on overlapped-19-1, seed 0, scored from files\nstep 0/1  old ")
    expected = slow_count([(mask, guesses[name]) for name, mask in masks.items()])
    assert expected[20].sum() > 0 and 0 < np.trace(expected) < expected.sum()
    assert np.array_equal(counted(commands), expected)


def test_class_numbers_become_places_in_the_order_of_learning(commands: Any) -> None:
    setting = parse_setting("overlapped-19-1-b")
    assert setting.learning_order != tuple(range(21))
    masks = truth(commands.data)
    guesses = {name: guess(mask, {0, *setting.classes_seen(0)}) for name, mask in masks.items()}
    table = np.array(setting.test_table())
    expected = slow_count([(table[mask], table[guesses[name]]) for name, mask in masks.items()])
    told = words(commands, commands.home, "--view", "full", setting=setting.name, step=0)
    commands.refused(2, told, "--labels index or --labels number")
    for labels, seed, saved in (
        ("number", 1, guesses),
        ("index", 2, {n: table[g].astype(np.uint8) for n, g in guesses.items()}),
    ):
        folder = save(commands.home / labels, saved)
        more = (
            "--labels",
            labels,
            "--seed",
            str(seed),
            "--view",
            "full",
            "--out",
            str(commands.home / f"out-{labels}"),
        )
        commands.succeed(words(commands, folder, *more, setting=setting.name, step=0))
        (path,) = (commands.home / f"out-{labels}").glob("runs/voc/*/mine/*/step-0.json")
        record = read_record(path)
        assert np.array_equal(record.matrix(), expected)
        assert record.environment["predictions"]["labels"] == labels


def test_a_mask_may_have_the_size_of_the_crop(commands: Any) -> None:
    masks = truth(commands.data)
    guesses = {name: guess(mask, set(range(21))) for name, mask in masks.items()}
    whole = commands.succeed(words(commands, save(commands.home / "whole", guesses), "--json"))
    view = EvalTransform(EvalView(512, 512))
    cropped = {
        name: view(torch.zeros(3, *mask.shape, dtype=torch.uint8), torch.from_numpy(mask.copy()))[1].numpy()
        for name, mask in guesses.items()
    }
    assert {mask.shape for mask in cropped.values()} == {(512, 512)}
    more = ("--json", "--out", str(commands.home / "other"))
    again = commands.succeed(words(commands, save(commands.home / "cropped", cropped), *more))
    told = [json.loads(result.stdout) for result in (whole, again)]
    assert told[0]["old"] == told[1]["old"] > 10 and told[0]["all"] == told[1]["all"]
    assert counted(commands).sum() > 6 * 400 * 512


def test_the_predictions_of_a_run_give_its_own_record(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, count = [], evaluate._count

    def keep(prediction: torch.Tensor, target: torch.Tensor, classes: int) -> torch.Tensor:
        kept.append(prediction.clone())
        return count(prediction, target, classes)

    monkeypatch.setattr(evaluate, "_count", keep)
    recipe = ("--set", "optim.iterations=3", "--set", "later.iterations=3")
    commands.succeed(["run", "--method", "mib", "--setting", ALL, "--profile", "quick", *recipe, *commands.places()])
    own = {step: read_record(path) for step, path in commands.records().items()}
    predictions, ids = torch.cat(kept).to(torch.uint8).numpy(), synthetic_source("voc").ids("val")
    assert len(predictions) == 2 * len(ids)
    for step in (0, 1):
        part = predictions[step * len(ids) : (step + 1) * len(ids)]
        folder = save(commands.home / f"masks{step}", dict(zip(ids, part, strict=True)))
        told = words(commands, folder, step=step)
        told[told.index("--profile") + 1] = "quick"
        del told[told.index("--data-root") : told.index("--data-root") + 2]
        commands.succeed(told)
    made = [read_record(path) for path in sorted(commands.out.glob("runs/voc/*/mine/*/step-*.json"))]
    assert [record.confusion for record in made] == [own[0].confusion, own[1].confusion]
    assert {(record.origin, record.profile, record.data.kind) for record in made} == {
        ("predictions", "quick", "synthetic")
    }
    assert len({record.run_key for record in made}) == 1 and len({record.key for record in made}) == 2


def test_scoring_again_changes_nothing_and_other_masks_are_another_run(commands: Any) -> None:
    masks = {name: guess(mask, set(range(21))) for name, mask in truth(commands.data).items()}
    told = words(commands, save(commands.home / "masks", masks))
    commands.succeed(told)
    (path,) = commands.records().values()
    before = path.read_bytes()
    commands.succeed(told)
    assert path.read_bytes() == before
    assert "mine" in commands.succeed(["table", "--out", str(commands.out)]).stdout
    save(commands.home / "masks", {name: np.zeros_like(mask) for name, mask in masks.items()})
    commands.refused(1, told, str(path), "holds another record")
    assert path.read_bytes() == before
    run = read_record(path).run_key
    commands.succeed(["submit", run, "--out", str(commands.out), "--to", "mine.json"])
    commands.succeed(["accept", "mine.json", "--out", str(commands.home / "theirs")])
    (taken,) = (commands.home / "theirs").glob("runs/*/*/*/*/step-1.json")
    assert read_record(taken).origin == "submitted"
    assert read_record(taken).confusion == read_record(path).confusion


def break_missing(folder: Path) -> None:
    (folder / "v002.png").unlink()


def break_extra(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")


def break_size(folder: Path) -> None:
    Image.fromarray(np.zeros((64, 48), np.uint8)).save(folder / "v003.png")


def put_value(value: int) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        mask = np.array(Image.open(folder / "v004.png"))
        mask[5, 9] = value
        Image.fromarray(mask).save(folder / "v004.png")

    return broken


def break_mode(folder: Path) -> None:
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(folder / "v001.png")


def break_depth(folder: Path) -> None:
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(folder / "v001.png")


def break_file(folder: Path) -> None:
    path = folder / "v000.png"
    path.write_bytes(path.read_bytes()[:-30])


def break_kind(folder: Path) -> None:
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(folder / "v005.png", format="JPEG")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (break_missing, ["lacks v002.png"]),
        (break_extra, ["should not hold notes.txt"]),
        (break_size, ["v003.png", "64 x 48", "48 x 64", "512 x 512"]),
        (put_value(20), ["v004.png", "the value 20", "0 to 19"]),
        (put_value(21), ["v004.png", "the value 21", "row 5, column 9"]),
        (put_value(255), ["v004.png", "the value 255", "no void (255)"]),
        (break_mode, ["v001.png", "RGB"]),
        (break_depth, ["v001.png", "16-bit"]),
        (break_file, ["v000.png", "truncated"]),
        (break_kind, ["v005.png", "no PNG"]),
    ],
)
def test_a_faulty_file_is_named_and_nothing_is_written(
    commands: Any, broken: Callable[[Path], None], says: list[str]
) -> None:
    masks = {name: guess(mask, set(range(20))) for name, mask in truth(commands.data).items()}
    folder = save(commands.home / "masks", masks)
    broken(folder)
    commands.refused(1, words(commands, folder, step=0), *says)
    assert commands.records() == {}


def break_pipe(folder: Path) -> None:
    (folder / "v003.png").unlink()
    os.mkfifo(folder / "v003.png")


def break_link(folder: Path) -> None:
    (folder / "v003.png").unlink()
    (folder / "v003.png").symlink_to("/dev/zero")


def break_header(folder: Path) -> None:
    """Put a second header behind the first, by which decoders take another size."""
    content = (folder / "v003.png").read_bytes()
    data = b"IHDR" + struct.pack(">II", 32, 96) + content[24:29]
    chunk = struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data))
    (folder / "v003.png").write_bytes(content[:33] + chunk + content[33:])


def break_pixels(folder: Path) -> None:
    """Leave out the last rows, which Pillow would take for background."""
    content = (folder / "v003.png").read_bytes()
    start = content.index(b"IDAT")
    length = int.from_bytes(content[start - 4 : start], "big")
    rows = zlib.decompress(content[start + 4 : start + 4 + length])
    data = b"IDAT" + zlib.compress(rows[: len(rows) // 2])
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    (folder / "v003.png").write_bytes(content[: start - 4] + chunk + content[start + 8 + length :])


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (break_pipe, "v003.png is a pipe"),
        (break_link, "v003.png is a device"),
        (break_header, "v003.png is truncated or unreadable"),
        (break_pixels, "v003.png is truncated or unreadable"),
    ],
)
def test_a_file_that_is_made_to_mislead_is_refused(commands: Any, broken: Callable[[Path], None], says: str) -> None:
    pytest.importorskip("cispbench.harness.data.png", reason="the strict reader of PNGs is not there")
    masks = {name: guess(mask, set(range(21))) for name, mask in truth(commands.data).items()}
    folder = save(commands.home / "masks", masks)
    broken(folder)
    commands.refused(1, words(commands, folder), says)
    assert commands.records() == {}


def test_usage(commands: Any) -> None:
    folder = commands.home / "none"
    commands.refused(1, words(commands, folder), str(folder), "cannot look into")
    commands.refused(2, words(commands, folder, step=2), "--step 2", "overlapped-19-1 is 1")
    commands.refused(2, words(commands, folder, "--method", "../x"), "--method '../x' is not a valid name")
    commands.refused(2, words(commands, folder, "--profile", "big"), "unknown profile 'big'")
    commands.refused(2, words(commands, folder, "--protocol", "strikt"), "'strict'")


def test_a_score_on_a_part_of_a_data_set_says_that_it_is_not_comparable(commands: Any) -> None:
    masks = {name: guess(mask, set(range(21))) for name, mask in truth(commands.data).items()}
    folder = save(commands.home / "masks", masks)
    warning = "on a small part of the real data: these numbers are NOT comparable with published ones."
    for profile in ("mini", "paper"):
        command = words(commands, folder, "--profile", profile)
        assert warning in " ".join(commands.succeed(command).stdout.split())
        assert json.loads(commands.succeed([*command, "--json"]).stdout)["comparable"] is False
    table = ["table", "--out", str(commands.out)]
    assert " ".join(commands.succeed(table).stdout.split()).count(warning) == 2
    runs = json.loads(commands.succeed([*table, "--runs", "--json"]).stdout)
    assert {run["comparable"] for run in runs} == {False}
