"""Companions: moved exactly as the mask, checked before anything is trained, and never mistaken for others."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cispbench.harness.data.companions import Maps, open_maps
from cispbench.harness.data.exemplars import exemplar_set
from cispbench.harness.data.loader import EvalLoader, TrainLoader
from cispbench.harness.data.source import find_source
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.data.transforms import EvalTransform, EvalView, TrainTransform
from cispbench.harness.distributed.division import Division
from cispbench.harness.method import Exemplar, Memory
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.harness.step import Companion
from cispbench.harness.training.micro_batches import cut_share
from cispbench.splits.errors import DataError
from cispbench.splits.settings import parse_setting

SALIENCY = Companion("saliency", "saliency_map", fill=0)
COPY = Companion("copy", "copies", fill=255)
SETTING = parse_setting("overlapped-10-5")
NUMBERS = (*range(21), *[-1] * 234, 255)


class Copies:
    """A map that is a copy of the mask."""

    def __init__(self, source: SyntheticSource, split: str, companion: Companion = COPY) -> None:
        self.companion, self.fingerprint = companion, "00"
        self._source, self._split = source, split

    def read(self, image_id: str) -> Tensor:
        return self._source.read(self._split, image_id)[1]


TRAININGS = [
    DataRecipe(crop=24, resize="none"), DataRecipe(crop=40, resize="none"), DataRecipe(crop=17, resize="none"),
    DataRecipe(crop=20, scale=(0.2, 1.0)), DataRecipe(crop=33, resize="scale"),
    DataRecipe(crop=40, resize="scale", pad="all-sides"),
    DataRecipe(crop=20, resize="scale", resize_short=31, flip=1.0), DataRecipe(crop=20, resize="none", resize_short=13),
]  # fmt: skip


@pytest.mark.parametrize("recipe", TRAININGS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_copy_of_the_mask_stays_one_in_training(recipe: DataRecipe, workers: int) -> None:
    source = SyntheticSource("voc", train=9, val=1, size=24)
    kept = [Exemplar(source.ids("train")[0], 0)]
    for exemplars in (None, exemplar_set(Memory(1, "replace", labels="seen"), kept, SETTING, 2)):
        loader = TrainLoader(
            source, source.ids("train"), NUMBERS, recipe, 4, seed=5, workers=workers, exemplars=exemplars,
            companions=[Copies(source, "train")],
        )  # fmt: skip
        plain = TrainLoader(source, source.ids("train"), NUMBERS, recipe, 4, seed=5, exemplars=exemplars)
        for epoch in (0, 1):
            for batch, expected in zip(loader.epoch(epoch), plain.epoch(epoch), strict=True):
                copy = batch.companions["copy"]
                assert copy.dtype == torch.int64 and copy.is_contiguous() and batch.target.is_contiguous()
                assert torch.equal(copy, batch.target)
                assert batch.target.unique().numel() > 2  # equal, and not for want of anything in it
                # Companions change nothing else.
                assert torch.equal(batch.images, expected.images) and torch.equal(batch.target, expected.target)
                assert batch.inputs == (batch.images, batch.companions) and expected.inputs == (expected.images,)


@pytest.mark.parametrize("view", [EvalView(), EvalView(13), EvalView(13, 9), EvalView(None, 40), EvalView(31, 40)])
def test_a_copy_of_the_mask_stays_one_in_the_test(view: EvalView) -> None:
    source = SyntheticSource("voc", train=1, val=5, size=24)
    found = EvalLoader(source, "val", source.ids("val"), NUMBERS, view, 2, companions=[Copies(source, "val")])
    assert [batch.ids for batch in found] == [("val_00000", "val_00001"), ("val_00002", "val_00003"), ("val_00004",)]
    for batch, plain in zip(found, EvalLoader(source, "val", source.ids("val"), NUMBERS, view, 2), strict=True):
        assert torch.equal(batch.companions["copy"], batch.target) and batch.target.unique().numel() > 2
        assert torch.equal(batch.images, plain.images) and torch.equal(batch.target, plain.target)


@pytest.mark.parametrize("pad", ["ends", "all-sides"])
def test_each_is_padded_with_its_own_fill(pad: Any) -> None:
    image, labels = torch.zeros(3, 6, 6, dtype=torch.uint8), torch.full((6, 6), 3, dtype=torch.uint8)
    planes = torch.stack([labels, labels + 1, labels + 2])
    recipe = DataRecipe(crop=12, resize="none", pad=pad, pad_label=0)
    moves = (
        (TrainTransform(recipe, (77, 88)), 0), (EvalTransform(EvalView(None, 12), (77, 88)), 255),
    )  # fmt: skip
    for transform, fill in moves:
        _, found = transform(image, planes)
        assert [sorted(plane.unique().tolist()) for plane in found] == [sorted({3, fill}), [4, 77], [5, 88]]
        assert torch.equal(found[0] == 3, found[1] == 4) and torch.equal(found[0] == 3, found[2] == 5)
        with pytest.raises(ValueError, match="a mask with 2 companions has 3 planes, not 2"):
            transform(image, planes[:2])
        with pytest.raises(TypeError, match="mask must be uint8 with 3 dimensions"):
            transform(image, labels)


def test_several_companions_go_by_name_through_devices_and_micro_batches() -> None:
    source = SyntheticSource("voc", train=9, val=1, size=24)
    maps: list[Maps] = [Copies(source, "train"), source.maps(SALIENCY, "train", source.ids("train"))]
    loader = TrainLoader(source, source.ids("train"), NUMBERS, TRAININGS[0], 6, seed=5, companions=maps)
    (whole,), division = loader.epoch(0), Division(6, 2, 2)
    assert list(whole.companions) == ["copy", "saliency"]
    assert not torch.equal(whole.companions["copy"], whole.companions["saliency"])
    for rank in (0, 1):
        (share,) = loader.share(division, rank).epoch(0)
        places = division.share(range(6), rank)
        for name in whole.companions:
            assert torch.equal(share.companions[name], whole.companions[name][places])
            pieces = [piece.companions[name] for piece in cut_share(share, division, rank)]
            assert len(pieces) == 2 and torch.equal(torch.cat(pieces), share.companions[name])


def test_scenes_have_the_saliency_of_every_object_with_an_inexact_outline() -> None:
    source = SyntheticSource("voc", train=40, val=3, size=24)
    ids = source.ids("train")
    maps = source.maps(SALIENCY, "train", ids)
    wrong = 0
    for image_id in ids:
        found, mask = maps.read(image_id), source.read("train", image_id)[1]
        assert found.dtype == torch.uint8 and found.shape == mask.shape and set(found.unique().tolist()) == {0, 255}
        objects = mask > 0
        shared = (objects & (found > 0)).sum() / (objects | (found > 0)).sum()
        assert shared > 0.6
        wrong += int(not torch.equal(objects, found > 0))
    assert wrong > len(ids) / 2
    # From (seed, index) alone; and an image's own.
    other = SyntheticSource("voc", train=40, val=3, size=24).maps(SALIENCY, "train", ids[5:9])
    assert all(torch.equal(other.read(one), maps.read(one)) for one in ids[5:9])
    assert other.fingerprint == source.maps(SALIENCY, "train", ids[5:9]).fingerprint != maps.fingerprint
    assert source.maps(SALIENCY, "val", source.ids("val")).fingerprint != maps.fingerprint
    with pytest.raises(DataError, match=r"no companion 'copy' .copies.; they have saliency_map alone"):
        source.maps(COPY, "train", ids)


@pytest.fixture
def maps(own_voc: Path) -> Path:
    """The folder of a small data set with a map of each training image."""
    folder = own_voc / SALIENCY.folder
    folder.mkdir()
    for number, path in enumerate(sorted((own_voc / "SegmentationClassAug").glob("t*.png"))):
        mask = np.asarray(Image.open(path))
        Image.fromarray(((mask > 0) * (100 + number)).astype(np.uint8)).save(folder / path.name)
    return own_voc


def opened(root: Path) -> Maps:
    source = find_source("voc", root, root / "cache")
    return source.maps(SALIENCY, "train", source.ids("train"))


def some_map(root: Path, number: int = 3) -> Path:
    return sorted((root / SALIENCY.folder).iterdir())[number]


def test_maps_of_a_folder_are_read_as_they_are(maps: Path) -> None:
    found, source = opened(maps), find_source("voc", maps, maps / "cache")
    for image_id in source.ids("train"):
        mask = source.read("train", image_id)[1]
        expected = np.asarray(Image.open(maps / SALIENCY.folder / f"{image_id}.png"))
        assert torch.equal(found.read(image_id), torch.tensor(expected))
        assert torch.equal(found.read(image_id) > 0, mask > 0)


def test_the_fingerprint_is_that_of_the_content_alone(maps: Path, tmp_path: Path) -> None:
    before = opened(maps).fingerprint
    assert opened(maps).fingerprint == before  # from the index
    moved = maps.rename(tmp_path / "moved")
    assert opened(moved).fingerprint == before
    path = some_map(moved)
    content = path.read_bytes()
    Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)
    assert opened(moved).fingerprint != before
    path.write_bytes(content)
    assert opened(moved).fingerprint == before
    source = find_source("voc", moved, moved / "cache")
    assert source.maps(SALIENCY, "train", source.ids("train")[1:]).fingerprint != before


def test_what_was_checked_is_not_read_again(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cispbench.harness.data import companions

    read = []
    original = companions.read_regular_file

    def counted(path: Path, what: str) -> bytes:
        read.append(path)
        return original(path, what)

    monkeypatch.setattr(companions, "read_regular_file", counted)
    opened(maps)
    everything = len(read)
    assert everything == len(list((maps / SALIENCY.folder).iterdir())) > 5
    opened(maps)
    assert len(read) == everything
    os.utime(some_map(maps))
    opened(maps)
    assert len(read) == everything + 1
    (index,) = (maps / "cache" / "index").glob("maps-*.json")
    index.write_text(index.read_text().replace("maps", "mops"))
    with pytest.warns(UserWarning, match="all maps are read again"):
        opened(maps)
    assert len(read) == 2 * everything + 1


def test_the_reading_of_maps_is_shown_and_loaders_can_be_sent_the_source(maps: Path) -> None:
    told: list[tuple[int, int]] = []
    source = find_source("voc", maps, maps / "cache", lambda done, total: told.append((done, total)))
    told.clear()
    ids = source.ids("train")
    source.maps(SALIENCY, "train", ids)
    assert told[-1] == (len(ids), len(ids))
    sent = pickle.loads(pickle.dumps(source))
    assert sent.progress is None and sent == replace(source, progress=None)


def test_a_missing_folder_is_named_with_where_maps_are_had(own_voc: Path) -> None:
    with pytest.raises(DataError, match=r"saliency_map does not exist\. It holds the companion 'saliency'") as caught:
        opened(own_voc)
    assert str(own_voc) in caught.value.message and "without them" in caught.value.hint
    told = replace(SALIENCY, how_to_get="Maps are had from X; method.unknown=background needs none.")
    with pytest.raises(DataError, match=r"method\.unknown=background needs none"):
        open_maps(own_voc, told, {}, own_voc / "cache")


def _smaller(path: Path) -> None:
    Image.open(path).resize((5, 7)).save(path)


def _colour(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


def _bits(path: Path) -> None:
    Image.open(path).convert("1").save(path)


def _palette(path: Path) -> None:
    Image.open(path).convert("P").save(path)


def _jpeg(path: Path) -> None:
    Image.open(path).save(path, format="JPEG")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(Path.unlink, "does not exist"), (_smaller, "7 x 5 pixels, its image"), (_colour, "8-bit RGB PNG"),
     (_bits, "1-bit grey PNG"), (_palette, "8-bit palette PNG"), (_jpeg, "is no PNG"), (_cut, "truncated"),
     (_flipped, "unreadable")],
)  # fmt: skip
def test_a_map_that_breaks_a_rule_is_named_before_the_training(maps: Path, spoil: Any, says: str) -> None:
    opened(maps)
    path = some_map(maps)
    spoil(path)
    with pytest.raises(DataError, match=says) as caught:
        opened(maps)
    assert str(path) in caught.value.message and caught.value.hint


def test_all_broken_maps_are_counted(maps: Path) -> None:
    for number in (1, 2, 4):
        _jpeg(some_map(maps, number))
    with pytest.raises(DataError, match=r"3 of \d+ maps break a rule"):
        opened(maps)


def test_a_map_that_changes_later_is_no_silent_other_one(maps: Path) -> None:
    found, path = opened(maps), some_map(maps)
    Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)
    with pytest.raises(DataError, match=r"the map .* has changed since"):
        found.read(path.stem)


def test_the_index_of_maps_keeps_no_path(maps: Path) -> None:
    opened(maps)
    (index,) = (maps / "cache" / "index").glob("maps-*.json")
    assert str(maps) not in index.read_text() and json.loads(index.read_text())["format"] == 1
