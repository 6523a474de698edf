"""How a batch is divided among devices and parts, and what the loaders make of it."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from cispbench.harness.data.loader import EvalLoader, TrainLoader
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.data.transforms import EvalView
from cispbench.harness.distributed.division import Division
from cispbench.harness.evaluate import confusion_matrix, evaluate
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.splits.errors import UsageError
from cispbench.splits.settings import parse_setting

SETTING = parse_setting("overlapped-15-5")
SIZES = st.integers(1, 40), st.integers(1, 9), st.none() | st.integers(1, 12)


def division(batch: int, devices: int, micro_batch: int | None) -> Division:
    try:
        return Division(batch, devices, micro_batch)
    except UsageError:
        assume(False)
        raise


@given(*SIZES)
def test_every_image_of_a_batch_is_one_device_s_own(batch: int, devices: int, micro_batch: int | None) -> None:
    made = division(batch, devices, micro_batch)
    images = list(range(batch))
    shares = [made.share(images, rank) for rank in range(devices)]
    assert sorted(image for share in shares for image in share) == images
    for rank, share in enumerate(shares):
        sizes = made.sizes(rank)
        assert len(sizes) == made.micro_batches and sum(sizes) == len(share)
        assert min(sizes) >= 1 and max(sizes) <= (micro_batch or batch)
    every = [size for rank in range(devices) for size in made.sizes(rank)]
    assert max(every) - min(every) <= 1
    assert made.undivided == (every == [batch])


@given(*SIZES)
def test_parts_are_neighbours_and_the_same_on_any_number_of_devices(
    batch: int, devices: int, micro_batch: int | None
) -> None:
    made, parts = division(batch, devices, micro_batch), []
    shares = [made.share(range(batch), rank) for rank in range(devices)]
    places = [0] * devices
    for part in range(made.micro_batches):
        images: list[int] = []
        for rank in range(devices):
            size = made.sizes(rank)[part]
            images += shares[rank][places[rank] : places[rank] + size]
            places[rank] += size
        parts.append(images)
    edges = [batch * part // made.micro_batches for part in range(made.micro_batches + 1)]
    assert parts == [list(range(*pair)) for pair in pairwise(edges)]
    assert min(map(len, parts)) == made.smallest_micro_batch


@given(*SIZES)
def test_a_division_that_leaves_a_device_idle_is_refused(batch: int, devices: int, micro_batch: int | None) -> None:
    parts = 1 if micro_batch is None else ceil(ceil(batch / devices) / micro_batch)
    if batch < devices or batch // parts < devices:
        with pytest.raises(UsageError) as error:
            Division(batch, devices, micro_batch)
        assert error.value.hint
    else:
        assert all(min(Division(batch, devices, micro_batch).sizes(rank)) >= 1 for rank in range(devices))


def train_loader(source: SyntheticSource) -> TrainLoader:
    view = DataRecipe(crop=16, resize="none", normalise="half")
    return TrainLoader(source, source.ids("train"), SETTING.label_table(0), view, batch_size=6, seed=3)


@pytest.mark.parametrize(("devices", "micro_batch"), [(2, None), (4, None), (1, 2), (2, 2)])
def test_processes_draw_their_shares_of_the_same_batches(devices: int, micro_batch: int | None) -> None:
    source, made = SyntheticSource("voc", train=20, val=3, size=24), Division(6, devices, micro_batch)
    whole = [batch for epoch in (0, 1) for batch in train_loader(source).epoch(epoch)]
    for rank in range(devices):
        loader = train_loader(source).share(made, rank)
        own = [batch for epoch in (0, 1) for batch in loader.epoch(epoch)]
        assert len(own) == len(whole) == 6
        for part, batch in zip(own, whole, strict=True):
            places = made.share(range(6), rank)
            assert part.ids == tuple(batch.ids[place] for place in places)
            assert torch.equal(part.images, batch.images[places])
            assert torch.equal(part.target, batch.target[places])


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_test_images_are_counted_once_each_without_padding(devices: int, batch: int) -> None:
    source = SyntheticSource("voc", train=2, val=7, size=24)
    classes = SETTING.num_foreground + 1

    def count(rank: int, of: int) -> tuple[torch.Tensor, list[str]]:
        view = EvalView(normalise="half")
        loader = EvalLoader(source, "val", source.ids("val"), SETTING.test_table(), view, batch, rank=rank, devices=of)
        matrix, seen = torch.zeros(classes, classes, dtype=torch.int64), []
        for loaded in loader:
            guess = (loaded.images.sum(1).abs() * 7).long() % classes
            matrix += confusion_matrix(guess, loaded.target, classes)
            seen += loaded.ids
        return matrix, seen

    whole, ids = count(0, 1)
    parts = [count(rank, devices) for rank in range(devices)]
    assert sorted(name for _, seen in parts for name in seen) == sorted(ids) and len(ids) == 7
    assert torch.equal(sum(matrix for matrix, _ in parts), whole)


def test_a_network_predicts_the_very_same_on_any_number_of_processes() -> None:
    source, classes = SyntheticSource("voc", train=2, val=7, size=32), SETTING.num_foreground + 1
    torch.manual_seed(0)
    model = build_model("segmenter-tiny", 32)  # without training: hardly any pixel is a clear case
    model.grow(classes)

    def count(rank: int, of: int) -> torch.Tensor:
        view = EvalView(normalise="half")
        loader = EvalLoader(source, "val", source.ids("val"), SETTING.test_table(), view, 2, rank=rank, devices=of)
        return evaluate(model, loader, classes, torch.device("cpu"), "fp32")

    whole = count(0, 1)
    assert int((whole.sum(0) > 0).sum()) > 10
    for devices in (2, 3, 9):  # of nine processes five have nothing to do
        assert torch.equal(sum(count(rank, devices) for rank in range(devices)), whole)
