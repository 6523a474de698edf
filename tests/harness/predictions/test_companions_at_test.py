"""Maps that the network needs for test images, too: read for the test, and for whoever predicts them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cispbench.harness.data import synthetic
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.predictions import from_weights
from cispbench.harness.predictions.from_weights import RunPredictor, recorded_run
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.runs.execute import execute
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import plan_run
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.step import Companion
from cispbench.methods.finetune import FineTune
from cispbench.results.store import Store
from cispbench.splits.errors import DataError
from cispbench.splits.settings import VOID, parse_setting

SCENES = SyntheticSource("voc", train=40, val=5, size=24)
CPU = torch.device("cpu")


class WithMaps(FineTune):
    shared_base = False

    def companions(self, setting: Any) -> tuple[Companion, ...]:
        return (Companion("saliency", "saliency_map", fill=0, at_test=True), Companion("other", "saliency_map"))


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run whose network says background wherever nothing is salient, and class 1 elsewhere."""
    original = IncrementalModel.forward

    def forward(self: Any, images: Any, companions: Any = None, *more: Any) -> Any:
        output = original(self, images, companions, *more)
        salient = companions["saliency"] > 0
        output.logits[:, 0].add_(torch.where(salient, 0, 1e4))
        output.logits[:, 1].add_(torch.where(salient, 1e4, 0))
        return output

    monkeypatch.setattr(IncrementalModel, "forward", forward)
    monkeypatch.setattr(from_weights, "load_method", lambda name: WithMaps)
    setting, method = parse_setting("overlapped-10-10"), WithMaps()
    short = ["optim.iterations=1", "later.iterations=1", "optim.warmup=0", "later.warmup=0", "optim.batch=2"]
    recipe = load_recipe(FineTune, setting, "quick", "deeplabv3-tiny", [*short, "data.crop=24"])
    plan = plan_run(setting=setting, method=method, recipe=recipe, profile="quick", seed=0, source=SCENES)
    options = RunOptions(
        records=Store(tmp_path / "out"), steps=StepStore(tmp_path / "steps"), device=CPU, view=ProgressView(),
        source=SCENES, method=method,
    )  # fmt: skip
    return tmp_path, plan, execute(plan, options)


def predictor(folder: Path, plan: Any) -> RunPredictor:
    return RunPredictor(recorded_run(Store(folder / "out"), plan.run_key), SCENES, StepStore(folder / "steps"), CPU)


def test_the_network_is_given_the_maps_of_the_images_that_are_tested(finished: Any) -> None:
    folder, plan, result = finished
    maps = SCENES.maps(Companion("saliency", "saliency_map"), "val", SCENES.ids("val"))
    counts = np.zeros((21, 21), dtype=int)
    for name in SCENES.ids("val"):
        truth, predicted = SCENES.read("val", name)[1].numpy(), (maps.read(name) > 0).numpy().astype(int)
        np.add.at(counts, (truth[truth != VOID], predicted[truth != VOID]), 1)
    assert counts[:, 1].sum() > 100
    assert all(np.array_equal(record.matrix(), counts) for record in result.records)
    # What is only read for training is no part of the test.
    assert set(plan.test_maps) == {"saliency"} and set(plan.steps[0].made_of["companions"]) == {"saliency", "other"}
    assert [record.supervision for record in result.records] == [("saliency", "other")] * 2
    for shown in predictor(folder, plan).predict(SCENES.ids("val")):
        assert all(np.array_equal(one, (maps.read(shown.name) > 0).numpy()) for one in shown.predictions)


def test_maps_that_the_run_was_not_tested_with_predict_nothing(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, plan, _ = finished
    monkeypatch.setattr(synthetic, "saliency", lambda rng, mask: mask // 2)
    with pytest.raises(DataError, match=r"step 0 .* was not tested with these maps \(saliency\)"):
        predictor(folder, plan)
