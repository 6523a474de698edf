"""Lies about exemplars and supervision are refused wherever records are read, and true words are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed, ExemplarsUsed
from cispbench.results.store import Store, read_run
from cispbench.results.submission_checks import problems
from cispbench.splits.errors import StoreError

Maker = Callable[..., StepRecord]
Fields = list[dict[str, Any]]
DATA = DataUsed("mini", "f1", 40, 20, "ab" * 32)
LAST = 5


def kept(images: int, size: int | None = None) -> dict[str, Any]:
    return {"exemplars": ExemplarsUsed(images, 4000 * images if size is None else size)}


def written(folder: Path, make_record: Maker, fields: Fields, first: int = 0) -> list[StepRecord]:
    """Write a run of overlapped-15-1, from the step ``first`` on, and read it; ``fields``: of its steps."""
    store, paths = Store(folder), []
    for step, changes in enumerate(fields, start=first):
        before = {"previous_key": None} if step == first else {}
        paths.append(store.write(make_record(step=step, data=DATA, **before, **changes)))
    return list(read_run(paths[0].parent))


SALIENCY = {"supervision": ("saliency",)}
TRUE: list[Fields] = [
    [{}] * 6,
    [SALIENCY] * 6,
    [{}, *[SALIENCY] * 5],  # a base that methods share
    [{}, kept(40), kept(80), kept(100), kept(3), {}],
    [{}, {}, {}, kept(40), {}, kept(1, 4)],
]
FALSE: list[tuple[Fields, str]] = [
    ([{}, kept(41), *[{}] * 4], "step 1: exemplars is 41 images, and there are 40 to choose from"),
    ([{}, kept(10), kept(51), *[{}] * 3], "step 2: exemplars is 51 images, and there are 50 to choose from"),
    ([{}, {}, kept(80), *[{}] * 3], "step 2: exemplars is 80 images, and there are 40"),
    ([SALIENCY, {}, *[{}] * 4], "step 1: supervision is nothing, and 'saliency' at the step before"),
    ([{}, SALIENCY, {}, *[SALIENCY] * 3], "step 2: supervision is nothing, and 'saliency' at the step before"),
    ([{}, {}, SALIENCY, *[SALIENCY] * 3], "step 2: supervision is 'saliency', and nothing at the step before"),
]


@pytest.mark.parametrize("fields", TRUE, ids=str)
def test_what_can_be_is_read(tmp_path: Path, make_record: Maker, fields: Fields) -> None:
    assert len(written(tmp_path, make_record, fields)) == 6


def test_a_run_that_goes_on_from_an_imported_step_can_keep_images_of_that_one(
    tmp_path: Path, make_record: Maker
) -> None:
    assert written(tmp_path / "right", make_record, [{}, kept(40), kept(70)], first=2)
    with pytest.raises(StoreError, match="step 3: exemplars is 41 images, and there are 40 to choose from"):
        written(tmp_path / "wrong", make_record, [{}, kept(41), kept(70)], first=2)


@pytest.mark.parametrize(("fields", "words"), FALSE, ids=[words for _, words in FALSE])
def test_what_cannot_be_is_refused(tmp_path: Path, make_record: Maker, fields: Fields, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        written(tmp_path, make_record, fields)


@pytest.mark.parametrize("size", [4002, 96])
def test_the_bytes_are_whole_pixels_of_every_image(make_record: Maker, size: int) -> None:
    with pytest.raises(StoreError, match=f"exemplars is 25 images of {size} bytes"):
        make_record(step=1, **kept(25, size))
    assert make_record(step=1, **kept(25, 100))


def test_a_submitted_name_of_maps_is_plain_words(make_record: Maker) -> None:
    record = replace(make_record(step=LAST, data=DATA), supervision=("<script>alert(1)</script>",))
    assert any("supervision is '<script>" in text for text in problems([record])), problems([record])
