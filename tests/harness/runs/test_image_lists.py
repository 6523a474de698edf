"""The images of a step: on full data those of the published lists, or an error before anything is trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cispbench.harness.runs.image_lists import ImageLists
from cispbench.splits.errors import DataError
from cispbench.splits.settings import parse_setting


def source(kind: str) -> Any:
    """Twenty images that hold one class each."""
    presence = {f"image{number}": frozenset({number}) for number in range(1, 21)}
    return SimpleNamespace(kind=kind, presence=lambda split: presence, ids=lambda split: tuple(presence))


def test_masks_that_select_other_images_than_published_are_refused_before_training() -> None:
    setting = parse_setting("overlapped-15-5")
    with pytest.raises(DataError, match=r"are not the .* of the published list.*data check"):
        ImageLists(source("full")).train(setting, 1)
    images, _ = ImageLists(source("mini")).train(setting, 1)
    assert len(images) == 5
    assert len(ImageLists(source("full")).train(setting.joint(), 0)[0]) == 20  # no list is published for it
