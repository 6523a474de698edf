"""Exemplars in batches: whose labels they show, how many there are and where; the same whatever reads the batches."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cispbench.harness.data.exemplars import ExemplarSet, check_memory, exemplar_set
from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.distributed.division import Division
from cispbench.harness.method import Batch, Exemplar, Memory
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.harness.training.micro_batches import cut_share
from cispbench.splits.errors import MethodError
from cispbench.splits.settings import parse_setting

SETTING, STEP = parse_setting("overlapped-10-5"), 1
SCENES = SyntheticSource("voc", train=40, val=2, size=24)
OWN, OTHERS = SCENES.ids("train")[:21], SCENES.ids("train")[21:28]
CROP = DataRecipe(crop=16, resize="none")
WHOLE = DataRecipe(crop=24, resize="none", flip=0.0)
# The first of the step's own images is an exemplar, too.
KEPT = [*(Exemplar(name, 0) for name in OTHERS), Exemplar(OWN[0], 0)]


def memory(use: str = "replace", **changes: Any) -> ExemplarSet:
    return exemplar_set(Memory(20, use, **changes), KEPT, SETTING, STEP)  # type: ignore[arg-type]


def loader(exemplars: ExemplarSet | None, recipe: DataRecipe = CROP, size: int = 4, **changes: Any) -> TrainLoader:
    table = SETTING.label_table(STEP)
    return TrainLoader(SCENES, OWN, table, recipe, size, seed=3, exemplars=exemplars, **changes)


def assert_same(found: Iterable[Batch], expected: Iterable[Batch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        assert one.origin is not None and other.origin is not None and torch.equal(one.origin, other.origin)
        assert torch.equal(one.images, other.images) and torch.equal(one.target, other.target)


def test_appended_exemplars_lengthen_the_epoch_and_each_comes_once() -> None:
    batches = list(loader(memory("append"), size=29).epoch(0))
    assert len(batches) == 1
    assert Counter(batches[0].ids) == Counter([*OWN, *(one.id for one in KEPT)])
    assert batches[0].ids.count(OWN[0]) == 2
    assert len(loader(memory("append"))) == 29 // 4 and len(loader(None)) == 21 // 4
    # 0 for an exemplar, the step for its own: of the image that is there twice, one of each.
    assert batches[0].origin is not None and batches[0].origin.dtype == torch.int64
    origins = Counter(zip(batches[0].ids, batches[0].origin.tolist(), strict=True))
    assert origins[OWN[0], 0] == origins[OWN[0], 1] == 1
    assert {name for name, origin in origins if origin == 0} == {one.id for one in KEPT}


@pytest.mark.parametrize(("share", "size", "count"), [(0.5, 4, 2), (0.5, 5, 2), (0.3, 10, 3), (1.0, 4, 4)])
def test_exemplars_replace_their_share_of_every_batch(share: float, size: int, count: int) -> None:
    mixed, plain = loader(memory(share=share), size=size), loader(None, size=size)
    assert len(mixed) == len(plain)
    places = []
    for epoch in (0, 1):
        for found, expected in zip(mixed.epoch(epoch), plain.epoch(epoch), strict=True):
            assert found.origin is not None
            exemplar = found.origin < STEP
            assert int(exemplar.sum()) == count
            places.append(tuple(exemplar.nonzero().flatten().tolist()))
            # The other places hold what they would hold without a memory, seen in the same way.
            for place in (~exemplar).nonzero().flatten().tolist():
                assert found.ids[place] == expected.ids[place]
                assert torch.equal(found.images[place], expected.images[place])
    assert share == 1.0 or len(set(places)) > 1


def test_the_memory_is_gone_through_before_an_exemplar_returns() -> None:
    # All 8 exemplars are an epoch of two batches of 4 of the memory, which replace all images here.
    batches = loader(memory(share=1.0)).epoch(0)
    order = [[name for batch in pair for name in batch.ids] for pair in zip(batches, batches)]
    assert all(sorted(names) == sorted(one.id for one in KEPT) for names in order) and len(order) == 2
    assert order[0] != order[1]


def test_a_memory_smaller_than_a_batch_is_repeated() -> None:
    few = replace(memory(share=1.0), kept=(KEPT[0],), tables=(SETTING.label_table(0),))
    assert [set(batch.ids) for batch in loader(few).epoch(0)] == [{KEPT[0].id}] * 5
    first = next(loader(few).epoch(0))
    assert not torch.equal(first.images[0], first.images[1])  # each time another view of it


def test_labels_go_by_entry_and_not_by_image() -> None:
    """An image of the step that is an exemplar, too, is in the epoch with two different targets."""
    numbers = {name: SCENES.read("train", name)[1] for name in (*OWN, *OTHERS)}
    known = SETTING.num_classes(STEP)
    for labels in ("step", "origin", "seen"):
        (batch,) = loader(memory("append", labels=labels), WHOLE, 29).epoch(0)
        assert batch.origin is not None
        differing = 0
        for name, origin, target in zip(batch.ids, batch.origin.tolist(), batch.target, strict=True):
            mask = numbers[name].long()
            # In the natural order, the index of a class is its number.
            first, end = {"step": (11, 16), "origin": (1, 11), "seen": (1, 16)}[labels] if origin == 0 else (11, 16)
            expected = torch.where((mask >= first) & (mask < end) | (mask == 255), mask, 0)
            assert torch.equal(target, expected)
            differing += int(
                not torch.equal(expected, torch.where((mask >= 11) & (mask < 16) | (mask == 255), mask, 0))
            )
        assert known == 16 and (differing > 0) == (labels != "step")


@pytest.mark.parametrize("use", ["append", "replace"])
@pytest.mark.parametrize("cache", [False, True])
def test_workers_caches_and_a_resumed_epoch_change_nothing(use: str, cache: bool) -> None:
    expected = [list(loader(memory(use)).epoch(epoch)) for epoch in (0, 1, 2)]
    for workers in (0, 2):
        others = loader(memory(use), workers=workers, cache=cache)
        for epoch in (0, 1, 2):
            assert_same(others.epoch(epoch), expected[epoch])
        for epoch, start in ((2, 3), (0, 1), (1, len(others))):
            assert_same(loader(memory(use), workers=workers).epoch(epoch, start), expected[epoch][start:])


@pytest.mark.parametrize("use", ["append", "replace"])
@pytest.mark.parametrize("division", [Division(6, 2), Division(6, 3, 1), Division(6, 1, 4), Division(6, 2, 2)])
def test_shares_and_micro_batches_are_parts_of_the_same_batches(use: str, division: Division) -> None:
    whole = list(loader(memory(use), size=6).epoch(1))
    for rank in range(division.devices):
        share = list(loader(memory(use), size=6).share(division, rank).epoch(1))
        for part, batch in zip(share, whole, strict=True):
            places = division.share(range(6), rank)
            assert_same([part], [replace(
                batch, images=batch.images[places], target=batch.target[places],
                ids=tuple(batch.ids[place] for place in places), origin=batch.origin[places],  # type: ignore[index]
            )])  # fmt: skip
            pieces = cut_share(part, division, rank)
            assert [len(piece.ids) for piece in pieces] == division.sizes(rank)
            assert part.origin is not None
            assert torch.equal(torch.cat([piece.origin for piece in pieces if piece.origin is not None]), part.origin)


def test_without_a_memory_order_and_augmentation_are_drawn_as_ever() -> None:
    def generator(*parts: object) -> torch.Generator:
        digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    for epoch in (0, 2):
        order = torch.randperm(21, generator=generator("order", 3, epoch)).tolist()
        batches = list(loader(None).epoch(epoch))
        assert [name for batch in batches for name in batch.ids] == [OWN[place] for place in order[:20]]
        assert all(batch.origin is None and batch.companions == {} for batch in batches)
        # A memory without exemplars, as in step 0, differs by what the batch says of its origin alone.
        empty = list(loader(exemplar_set(Memory(5), (), SETTING, STEP)).epoch(epoch))
        for one, other in zip(empty, batches, strict=True):
            assert one.origin is not None and one.origin.tolist() == [STEP] * 4
            assert one.ids == other.ids and torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [(Memory(0), "size is 0"), (Memory(3, share=0.0), "share is 0"), (Memory(3, share=1.5), "share is 1.5"),
     (Memory(3, "swap"), "use is 'swap'"), (Memory(3, labels="all"), "labels is 'all'"),  # type: ignore[arg-type]
     (Memory(3, "replace", share=0.2), "no place in a batch of 4: its share is 0.2")],
)  # fmt: skip
def test_a_memory_that_cannot_be_used_is_refused(wrong: Memory, says: str) -> None:
    with pytest.raises(MethodError, match=says) as caught:
        check_memory("mine", wrong, 4)
    assert "the memory of mine" in caught.value.message
    check_memory("mine", Memory(3, share=0.2), 4)  # appended exemplars take no place
