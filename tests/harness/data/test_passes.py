"""Passes over the images of a step: every image once, or the first epoch of the training, each time the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from cispbench.harness.data.exemplars import exemplar_set
from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.data.normalise import Normalisation
from cispbench.harness.data.passes import Passes, centre_view
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.data.transforms import EvalTransform, EvalView
from cispbench.harness.method import Batch, Exemplar, Memory
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.splits.errors import DataError
from cispbench.splits.settings import parse_setting

SETTING = parse_setting("overlapped-10-5")
SCENES = SyntheticSource("voc", train=30, val=2, size=24)
OWN, OTHERS = SCENES.ids("train")[:11], SCENES.ids("train")[11:15]
CENTRE = EvalView(20, 16)
AREA = DataRecipe(crop=16)


def loader(use: str | None = None, workers: int = 0) -> TrainLoader:
    kept = [Exemplar(name, 0) for name in (*OTHERS, OWN[2])]
    memory = None if use is None else exemplar_set(Memory(9, use, labels="seen"), kept, SETTING, 1)  # type: ignore[arg-type]
    return TrainLoader(SCENES, OWN, SETTING.label_table(1), AREA, 4, seed=1, workers=workers, exemplars=memory)


def passes(use: str | None = None, workers: int = 0) -> Passes:
    return Passes(loader(use, workers), CENTRE, torch.device("cpu"))


def assert_same(found: Iterable[Batch], expected: Iterable[Batch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.images, other.images) and torch.equal(one.target, other.target)


@pytest.mark.parametrize("workers", [0, 2])
def test_by_default_it_is_the_first_epoch_of_the_training(workers: int) -> None:
    expected = list(loader().epoch(0))
    made = passes(workers=workers)
    assert_same(made(), expected)
    assert_same(made.loader.epoch(0), expected)  # the training is none the wiser
    assert_same(made(), expected)
    assert_same(passes("append")(), loader("append").epoch(0))


def test_exemplars_that_replace_images_are_not_in_the_first_epoch() -> None:
    replaced = list(loader("replace").epoch(0))
    assert any(batch.origin is not None and (batch.origin == 0).any() for batch in replaced)
    assert_same(passes("replace")(), loader().epoch(0))


@pytest.mark.parametrize("view", ["train", "centre"])
@pytest.mark.parametrize(("size", "lengths"), [(4, [4, 4, 3]), (11, [11]), (100, [11])])
def test_with_a_size_every_image_comes_once_in_order(view: Any, size: int, lengths: list[int]) -> None:
    for use in (None, "append", "replace"):
        found = passes(use)(view, size)
        batches = list(found)
        assert [len(batch.ids) for batch in batches] == lengths
        assert tuple(name for batch in batches for name in batch.ids) == OWN
        assert_same(found, batches)
        assert_same(passes(use, workers=2)(view, size), batches)


def test_the_size_of_batches_changes_no_image() -> None:
    whole, parts = next(iter(passes()("train", 11))), list(passes()("train", 3))
    assert torch.equal(torch.cat([batch.images for batch in parts]), whole.images)
    first = {name: image for batch in loader().epoch(0) for name, image in zip(batch.ids, batch.images, strict=True)}
    assert any(not torch.equal(first[name], image) for name, image in zip(whole.ids, whole.images, strict=True)
               if name in first)  # fmt: skip


def test_the_centre_is_what_a_test_would_see_with_the_labels_of_the_step() -> None:
    transform, table = EvalTransform(CENTRE), torch.tensor(SETTING.label_table(1))
    normalise = Normalisation(CENTRE.normalise)
    for found in (passes()("centre", 5), passes()("centre")):
        for batch in found:
            for name, image, target in zip(batch.ids, batch.images, batch.target, strict=True):
                expected, mask = transform(*SCENES.read("train", name))
                assert torch.equal(image, normalise(expected[None])[0]) and torch.equal(target, table[mask.long()])
    assert [batch.ids for batch in passes()("centre")] == [batch.ids for batch in loader().epoch(0)]


def test_images_can_be_named() -> None:
    names = [OWN[3], OWN[0], OWN[7]]
    (batch,) = passes()("centre", ids=names)
    assert batch.ids == tuple(names)
    assert [len(part.ids) for part in passes()("train", 2, names)] == [2, 1]
    # Exemplars, too; of an image that is both, it is the step's own.
    (batch,) = passes("replace")("centre", 9, [OTHERS[1], OWN[2]])
    assert batch.ids == (OTHERS[1], OWN[2]) and batch.origin is not None and batch.origin.tolist() == [0, 1]
    assert list(passes()("train", ids=[])) == []


def test_what_cannot_be_read_is_refused_at_once() -> None:
    for use, name in ((None, OTHERS[0]), ("append", "val_00000"), (None, "nobody")):
        with pytest.raises(DataError, match=f"{name!r} is none of the 11 images of the step"):
            passes(use)(ids=[name])
    with pytest.raises(ValueError, match="size"):
        passes()("train", 0)
    with pytest.raises(ValueError, match="view"):
        passes()("test")  # type: ignore[arg-type]


@pytest.mark.parametrize(("short", "view"), [(20, EvalView(20, 12, "half")), (None, EvalView(12, 12, "half"))])
def test_the_centre_follows_the_training_so_that_images_have_one_size(short: Any, view: EvalView) -> None:
    assert centre_view(DataRecipe(crop=12, resize_short=short, normalise="half")) == view
