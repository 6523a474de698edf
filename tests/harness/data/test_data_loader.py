"""Loaders: the same batches whatever the workers and wherever an epoch is resumed; every test image exactly once."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cispbench.harness.data.labels import to_table
from cispbench.harness.data.loader import EvalLoader, TrainLoader
from cispbench.harness.data.order import Draw
from cispbench.harness.data.samples import TrainSet
from cispbench.harness.data.source import Source
from cispbench.harness.data.transforms import EvalView
from cispbench.harness.data.workers import batches_of
from cispbench.harness.method import Batch
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.splits.errors import DataError

TABLE = (0, 1, 2, 0, *[-1] * 251, 255)
CROP = DataRecipe(crop=12, resize="none")
AREA = DataRecipe(crop=12, scale=(0.3, 1.0))


class Drawn:
    """A source of noise in memory; ``broken`` ids raise, and reads are counted."""

    dataset, kind, fingerprint = "voc", "synthetic", "00"

    def __init__(self, count: int, sizes: tuple[tuple[int, int], ...] = ((16, 20),), broken: str = "") -> None:
        self._sizes = {f"{number:03d}": sizes[number % len(sizes)] for number in range(count)}
        self._broken = broken
        self.reads: Counter[str] = Counter()

    def ids(self, split: str) -> tuple[str, ...]:
        return tuple(self._sizes)

    def presence(self, split: str) -> dict[str, frozenset[int]]:
        return {image_id: frozenset({1, 2, 3}) for image_id in self._sizes}

    def read(self, split: str, image_id: str) -> tuple[Tensor, Tensor]:
        self.reads[image_id] += 1
        if image_id == self._broken:
            raise DataError(f"the mask {image_id}.png is broken.", hint="Mend it.")
        generator = torch.Generator().manual_seed(int(image_id))
        size = self._sizes[image_id]
        mask = torch.randint(0, 4, size, dtype=torch.uint8, generator=generator)
        mask[0] = 255
        return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator), mask


def loader(source: Source, view: DataRecipe = AREA, size: int = 4, seed: int = 0, workers: int = 0) -> TrainLoader:
    return TrainLoader(source, source.ids("train"), TABLE, view, size, seed, workers=workers)


def labels_in(target: Tensor) -> set[int]:
    return set(target.flatten().tolist())


def assert_same(found: Iterable[Batch], expected: Iterable[Batch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.images, other.images) and torch.equal(one.target, other.target)


def test_batches_are_what_a_method_expects() -> None:
    batches = list(loader(Drawn(10)).epoch(0))
    assert len(batches) == len(loader(Drawn(10))) == 2
    for batch in batches:
        assert batch.images.shape == (4, 3, 12, 12) and batch.images.dtype == torch.float32
        assert batch.target.shape == (4, 12, 12) and batch.target.dtype == torch.int64
        assert isinstance(batch.ids, tuple) and len(batch.ids) == 4
        assert labels_in(batch.target) <= {0, 1, 2, 255}
    seen = [image_id for batch in batches for image_id in batch.ids]
    assert len(set(seen)) == 8


def test_an_epoch_is_a_permutation_drawn_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[str]:
        return [image_id for batch in loader(Drawn(12), seed=seed).epoch(epoch) for image_id in batch.ids]

    assert sorted(order(0, 0)) == sorted(Drawn(12).ids("train"))
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_augmentation_changes_from_epoch_to_epoch() -> None:
    def views(epoch: int) -> dict[str, Tensor]:
        batches = loader(Drawn(8)).epoch(epoch)
        return {name: image for batch in batches for name, image in zip(batch.ids, batch.images, strict=True)}

    first, second = views(0), views(1)
    assert len(first) == 8
    assert not any(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("view", [CROP, AREA])
def test_workers_change_nothing(view: DataRecipe) -> None:
    source = Drawn(11)
    expected = [list(loader(source, view).epoch(epoch)) for epoch in (0, 1)]
    for workers in (1, 2):
        others = loader(source, view, workers=workers)
        for epoch in (0, 1):
            assert_same(others.epoch(epoch), expected[epoch])


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_changes_nothing_and_decodes_nothing_more(workers: int) -> None:
    expected = list(loader(Drawn(20)).epoch(3))
    for start in (0, 1, 4, 5):
        source = Drawn(20)
        assert_same(loader(source, workers=workers).epoch(3, start), expected[start:])
        if workers == 0:
            assert source.reads == Counter(image_id for batch in expected[start:] for image_id in batch.ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_abandoned_epoch_leaves_the_next_one_alone(workers: int) -> None:
    batches = loader(Drawn(40), workers=workers)
    abandoned = batches.epoch(0)
    next(abandoned)
    assert_same(batches.epoch(1), loader(Drawn(40)).epoch(1))
    assert_same(abandoned, loader(Drawn(40)).epoch(0, 1))
    assert_same(batches.epoch(0), loader(Drawn(40)).epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_go_on_with_the_next_epoch_and_with_that_alone(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from cispbench.harness.data import loader as module

    started = []

    def counted(*arguments: Any) -> Iterator[Any]:
        started.append(arguments)
        return batches_of(*arguments)

    monkeypatch.setattr(module, "batches_of", counted)
    batches = loader(Drawn(20), workers=workers)
    for number, (epoch, start, streams) in enumerate(
        [(0, 2, 1), (1, 0, 1), (2, 0, 1), (3, 1, 2), (4, 0, 2), (0, 0, 3)]
    ):
        assert_same(batches.epoch(epoch, start), loader(Drawn(20)).epoch(epoch, start))
        # The batches compared with are made by the same function.
        assert len(started) == streams + number + 1
    batches.close()
    assert list(batches.epoch(1, len(batches))) == []
    assert_same(batches.epoch(1), loader(Drawn(20)).epoch(1))


# The reader connects to the worker that holds a tensor, and hangs up, as Ctrl-C makes it do now and then.
HANGS_UP = """
import socket, time
from multiprocessing import resource_sharer
import torch
from torch.utils.data import Dataset
from cispbench.harness.data.workers import batches_of, stack

class Ones(Dataset):
    def __getitem__(self, key):
        return torch.ones(3, 4, 4), torch.ones(4, 4), key

def hang_up(ident):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(ident[0])
    time.sleep(0.5)
    raise SystemExit("hung up")

resource_sharer._ResourceSharer.get_connection = staticmethod(hang_up)
list(batches_of(Ones(), [["a", "b"]] * 8, stack, 1, False))
"""


def test_a_worker_whose_reader_hangs_up_says_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS_UP], capture_output=True, text=True, timeout=120)
    assert done.stderr == "hung up\n"


def test_no_worker_outlives_its_loader_or_an_error() -> None:
    assert not multiprocessing.active_children()
    batches = loader(Drawn(12), workers=2)
    list(batches.epoch(0))
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()
    list(batches.epoch(0))
    del batches
    assert not multiprocessing.active_children(), "a loader must not wait for the garbage collector"
    broken = loader(Drawn(12, broken="005"), workers=2)
    with pytest.raises(DataError):
        list(broken.epoch(0))
    assert not multiprocessing.active_children()


def test_no_global_generator_is_read_or_moved() -> None:
    def states() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), pickle.dumps(np.random.get_state()), random.getstate()

    for workers in (0, 2):
        before = states()
        expected = list(loader(Drawn(8), workers=workers).epoch(0))
        assert list(EvalLoader(Drawn(8), "val", Drawn(8).ids("val"), TABLE, EvalView(), 4, workers=workers))
        assert states() == before
        torch.manual_seed(99)
        assert_same(loader(Drawn(8), workers=workers).epoch(0), expected)


@pytest.mark.parametrize("images", [8, 10])
def test_an_incomplete_batch_is_left_out(images: int) -> None:
    batches = loader(Drawn(images), CROP)
    assert [len(batch.ids) for batch in batches.epoch(0)] == [4, 4]
    assert len(batches) == 2


def test_few_images_fill_one_batch_by_repetition() -> None:
    batches = loader(Drawn(3), size=8)
    (batch,) = batches.epoch(0)
    assert len(batches) == 1
    assert batch.ids == (batch.ids[:3] * 3)[:8] and len(set(batch.ids)) == 3
    # The same image at another place is another view of it.
    assert not torch.equal(batch.images[0], batch.images[3])


def test_kept_images_are_read_once_and_give_the_same() -> None:
    source = Drawn(8)
    kept = TrainLoader(source, source.ids("train"), TABLE, CROP, 4, 0, cache=True)
    for epoch in range(3):
        assert_same(kept.epoch(epoch), loader(Drawn(8), CROP).epoch(epoch))
    assert set(source.reads.values()) == {1}


def test_void_may_become_background_but_padding_keeps_its_label() -> None:
    source = Drawn(1, ((4, 6),))
    view = DataRecipe(crop=8, resize="none", flip=0.0)
    for void, labels in (("void", {0, 1, 2, 255}), ("background", {0, 1, 2})):
        data = TrainSet(source, source.ids("train"), TABLE, replace(view, void=void), 0)
        _, target, place = data[Draw(0, 0, 0)]
        assert place == 0 and target.dtype == torch.uint8
        assert labels_in(target[2:6, 1:7]) <= labels
        assert target[0].tolist() == [255] * 8
    assert 255 not in target[2:6, 1:7]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_the_data_arrives_as_it_was_raised(workers: int) -> None:
    source = Drawn(12, broken="005")
    batches = loader(source, workers=workers)
    evaluation = EvalLoader(source, "val", source.ids("val"), TABLE, EvalView(crop=8), 4, workers=workers)
    for iterable in (batches.epoch(0), evaluation):
        with pytest.raises(DataError) as caught:
            list(iterable)
        assert type(caught.value) is DataError
        assert (caught.value.message, caught.value.hint) == ("the mask 005.png is broken.", "Mend it.")
        assert str(caught.value) == "the mask 005.png is broken. Mend it."


@pytest.mark.parametrize("workers", [0, 2])
def test_a_value_without_a_label_names_the_image(workers: int) -> None:
    source = Drawn(4)
    table = to_table((0, 1, 2, -1, *[-1] * 251, 255))
    batches = TrainLoader(source, source.ids("train"), table, CROP, 4, 0, workers=workers)
    with pytest.raises(DataError, match=r"the mask of the train image 00\d holds the value 3") as caught:
        list(batches.epoch(0))
    assert caught.value.hint


def test_wrong_arguments() -> None:
    source = Drawn(4)
    with pytest.raises(DataError, match="no training images"):
        TrainLoader(source, (), TABLE, CROP, 4, 0)
    with pytest.raises(ValueError, match="batch_size"):
        loader(source, size=0)
    with pytest.raises(ValueError, match="batch_size"):
        EvalLoader(source, "val", source.ids("val"), TABLE, EvalView(), 0)
    for start in (-1, 2):
        with pytest.raises(ValueError, match="start is a batch from 0 to 1"):
            loader(source).epoch(0, start)


SIZES = ((10, 12), (10, 12), (12, 10), (10, 12), (10, 12), (10, 12))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_test_images_come_once_in_order_and_whole(size: int, workers: int) -> None:
    source = Drawn(15, SIZES)
    batches = list(EvalLoader(source, "val", source.ids("val"), TABLE, EvalView(), size, workers=workers))
    assert tuple(image_id for batch in batches for image_id in batch.ids) == source.ids("val")
    for batch in batches:
        images, target, ids = batch.images, batch.target, batch.ids
        assert images.shape == (len(ids), 3, *target.shape[1:]) and len(ids) <= size
        assert images.dtype == torch.float32 and target.dtype == torch.int64
        for image_id, labels in zip(ids, target, strict=True):
            mask = source.read("val", image_id)[1]
            assert torch.equal(labels, torch.tensor(TABLE)[mask.long()])
    if size > 1:
        assert max(len(batch.ids) for batch in batches) > 1


def test_counts_do_not_depend_on_the_size_of_batches() -> None:
    source = Drawn(15, SIZES)
    for view in (EvalView(), EvalView(8, 8), EvalView(None, 11)):
        counts = []
        for size in (1, 2, 7, 15):
            batches = EvalLoader(source, "val", source.ids("val"), TABLE, view, size)
            counts.append(sum(torch.bincount(batch.target.flatten(), minlength=256) for batch in batches))
        assert all(torch.equal(count, counts[0]) for count in counts[1:])  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_test_loader_can_be_read_again(workers: int) -> None:
    source = Drawn(6, SIZES)
    batches = EvalLoader(source, "val", source.ids("val"), TABLE, EvalView(8, 8), 4, workers=workers)
    first, second = list(batches), list(batches)
    assert len(first) == len(second) == 2
    assert all(torch.equal(a.images, b.images) and a.ids == b.ids for a, b in zip(first, second, strict=True))


def test_no_test_images_is_no_batch() -> None:
    assert list(EvalLoader(Drawn(1), "val", (), TABLE, EvalView(), 4)) == []
