"""The crop of MBS's and SSUL's releases, which pads all four sides; and the keys of recipes that choose it or not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cispbench.harness.data.geometry import ImageAndMask, released_padding
from cispbench.harness.data.transforms import TrainTransform
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.recipes.fields import DataRecipe, Recipe
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method
from cispbench.harness.runs.key_parts import changed_parts
from cispbench.harness.runs.plan import RunPlan
from cispbench.harness.runs.prepare import Preparer
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_store import StepStore
from cispbench.splits.settings import parse_setting


@pytest.mark.golden
def test_padding_is_bit_for_bit_that_of_the_release(golden: Path) -> None:
    recorded = {name: np.asarray(value).astype(int) for name, value in np.load(golden / "ssul_padding.npz").items()}
    crop = int(recorded["crop"])
    cases = list(
        zip(recorded["sizes"].tolist(), recorded["padded"].tolist(), recorded["offsets"].tolist(), strict=True)
    )
    assert len(cases) == 18 and sum(size != padded for size, padded, _ in cases) > 9
    for (width, height), (padded_width, padded_height), (left, top) in cases:
        image = torch.randint(1, 256, (3, height, width), dtype=torch.uint8, generator=torch.manual_seed(width))
        mask = torch.full((height, width), 7, dtype=torch.uint8)
        both = ImageAndMask(image, mask)
        before_x, before_y, after_x, after_y = both.padding(crop, "all-sides")
        padded = both.cut(-before_y, -before_x, before_y + height + after_y, before_x + width + after_x, (0,))
        found, labels = padded.image, padded.mask
        expected = torch.zeros(3, padded_height, padded_width, dtype=torch.uint8)
        expected[:, top : top + height, left : left + width] = image
        assert torch.equal(found, expected)
        assert torch.equal(labels == 7, expected[0] > 0) and set(labels.unique().tolist()) <= {0, 7}
        assert released_padding((height, width), crop)[:2] == (left, top)


@pytest.mark.parametrize(("pad", "bands"), [("ends", False), ("all-sides", True)])
def test_a_crop_of_a_narrow_image_may_lie_in_the_bands_above_and_below(pad: str, bands: bool) -> None:
    image, mask = torch.full((3, 33, 8), 9, dtype=torch.uint8), torch.full((33, 8), 9, dtype=torch.uint8)
    transform = TrainTransform(DataRecipe(crop=21, resize="none", flip=0.0, pad=pad, pad_label=0))  # type: ignore[arg-type]
    heights = set()
    for seed in range(60):
        crop, labels = transform(image, mask, torch.Generator().manual_seed(seed))
        assert crop.shape == (3, 21, 21) and labels.shape == (21, 21)
        heights.add(int((labels == 9).any(1).sum()))
    assert (min(heights) < 21) == bands


def test_images_as_wide_and_high_as_the_crop_are_the_same_either_way() -> None:
    image = torch.randint(0, 256, (3, 24, 23), dtype=torch.uint8, generator=torch.manual_seed(0))
    mask = torch.randint(0, 5, (24, 23), dtype=torch.uint8, generator=torch.manual_seed(0))
    found = [
        TrainTransform(DataRecipe(crop=21, resize="none", pad=pad))(image, mask, torch.Generator().manual_seed(3))
        for pad in ("ends", "all-sides")
    ]  # type: ignore[misc]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("method", "profile", "model", "pad"),
    [
        ("mbs", "paper", None, "all-sides"), ("finetune", "paper", "segmenter-vit-b16", "all-sides"),
        ("mib", "paper", None, "ends"), ("mbs", "mini", None, "ends"), ("mbs", "quick", None, "ends"),
    ],
)  # fmt: skip
def test_it_is_the_default_where_the_segmenter_is_trained_as_mbs_does(
    method: str, profile: str, model: str | None, pad: str
) -> None:
    recipe = load_recipe(load_method(method), parse_setting("overlapped-15-1"), profile, model)
    assert recipe.data.pad == pad
    assert ("pad" in recipe.as_recorded()["data"]) == (pad != "ends")
    assert recipe.as_dict()["data"]["pad"] == pad


def prepared(tmp_path: Path, method: str, *overrides: str, profile: str = "paper", model: str | None = None) -> RunPlan:
    request = RunRequest(method, "overlapped-15-1", profile=profile, model=model, overrides=overrides, weights="none")
    return Preparer(StepStore(tmp_path), ProgressView(), plan_only=True).prepare(request)


def test_the_default_is_in_no_key_and_the_choice_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CISPBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    released, ends = prepared(tmp_path, "mbs"), prepared(tmp_path, "mbs", "data.pad=ends")
    assert "pad" not in ends.steps[0].made_of["data_recipe"]
    assert [a.key == b.key for a, b in zip(released.steps, ends.steps, strict=True)] == [False] * 6
    assert changed_parts(ends.steps[0].made_of, released.steps[0].made_of, 0) == ["data.pad is all-sides, was not set"]
    quick = [prepared(tmp_path, "mbs", *more, profile="quick") for more in ((), ("data.pad=ends",))]
    assert quick[0].steps == quick[1].steps
    # Step 0 of the Segmenter stays shared by all methods with a plain base: they all follow MBS's release there.
    assert prepared(tmp_path, "mib", model="segmenter-vit-b16").steps[0].key == released.steps[0].key


def test_a_record_of_an_earlier_version_is_read_as_the_default() -> None:
    recipe = load_recipe(load_method("mib"), parse_setting("overlapped-15-1"), "quick")
    stored = json.loads(json.dumps(recipe.as_recorded()))
    assert "pad" not in stored["data"] and Recipe(**{**stored, "data": DataRecipe(**stored["data"])}).data.pad == "ends"
