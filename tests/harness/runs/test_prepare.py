"""From a request to a plan: recipes fit their weights, every road plans the same, and a plan is values alone."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cispbench.harness.data.source import Source
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.models.catalogue import build_model, model_spec
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.runs.inputs import load_planned_weights, open_source, planned_method, planned_source
from cispbench.harness.runs.key_parts import changed_parts
from cispbench.harness.runs.plan import RunPlan
from cispbench.harness.runs.prepare import Preparer, fit_weights
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.runs.weights_choice import WeightsChoice
from cispbench.harness.sweep.matrix import SweepRequest, expand
from cispbench.harness.sweep.planning import plan_sweep
from cispbench.methods.mbs import MBS
from cispbench.methods.mib import MiB
from cispbench.splits.errors import DataError, RunError
from cispbench.splits.settings import parse_setting

VIT = str(model_spec("segmenter-vit-b16").weights)


def fitted(profile: str, choice: WeightsChoice, *overrides: str) -> tuple[Recipe, list[str]]:
    recipe = load_recipe(MBS, parse_setting("overlapped-15-1"), profile, None, overrides)
    notes: list[str] = []
    return fit_weights(recipe, choice, profile, overrides, notes.append), notes


def weights(label: str, normalise: str | None) -> WeightsChoice:
    return WeightsChoice(label, "00", normalise, Path("net.pth"))  # type: ignore[arg-type]


def test_the_papers_own_weights_keep_the_papers_normalisation() -> None:
    recipe, notes = fitted("paper", weights(VIT, "half"))
    assert (recipe.weights, recipe.data.normalise, notes) == (VIT, "imagenet", [])


def test_other_weights_under_the_papers_recipe_bring_their_own_and_say_so() -> None:
    recipe, notes = fitted("paper", weights("others", "half"))
    assert (recipe.weights, recipe.data.normalise) == ("others", "half")
    assert notes == [
        "weights others: images are normalised as for their training (half), where the recipe says imagenet"
    ]


def test_weights_of_an_unknown_kind_are_told() -> None:
    recipe, notes = fitted("paper", weights("net.pth", None))
    assert recipe.data.normalise == "imagenet"
    assert len(notes) == 1 and "unknown here" in notes[0]


def test_small_runs_normalise_as_their_weights_want() -> None:
    own = str(model_spec("deeplabv3-mobilenetv2").weights)
    recipe, notes = fitted("mini", weights(own, "imagenet"))
    assert (recipe.data.normalise, recipe.freeze_batch_norm, notes) == ("imagenet", True, [])


@pytest.mark.parametrize("profile", ["paper", "mini"])
def test_what_the_user_sets_stays(profile: str) -> None:
    assert fitted(profile, weights("others", "imagenet"), "data.normalise=half")[0].data.normalise == "half"


def test_a_random_start_trains_its_batch_norms() -> None:
    recipe, notes = fitted("mini", WeightsChoice("none"))
    assert (recipe.weights, recipe.freeze_batch_norm) == ("none", False)
    assert len(notes) == 1 and "random start" in notes[0]


def prepared(tmp_path: Path, **asked: object) -> RunPlan:
    request = RunRequest(**{"method": "mib", "setting": "overlapped-15-5", "profile": "quick", **asked})  # type: ignore[arg-type]
    return Preparer(StepStore(tmp_path), ProgressView()).prepare(request)


def test_a_run_and_a_sweep_plan_the_same(tmp_path: Path) -> None:
    asked = SweepRequest(("mib",), ("overlapped-15-5",), (3,), "quick", None, ("optim.lr=0.02",))
    swept = plan_sweep(expand(asked, RunRequest("", "")), StepStore(tmp_path), ProgressView(), plan_only=False)
    assert swept.runs == (prepared(tmp_path, seed=3, overrides=("optim.lr=0.02",), devices=1),)


def test_a_plan_holds_names_and_values_and_can_be_carried_out_elsewhere(tmp_path: Path, voc: Path) -> None:
    plan = prepared(tmp_path, profile="mini", data_root=voc, weights="none")
    copy = pickle.loads(pickle.dumps(plan))
    assert copy == plan
    assert len(pickle.dumps(plan)) < 20_000  # no images, masks or networks in it
    assert "mib" in repr(plan) and "deeplabv3-mobilenetv2" in repr(plan)
    source = planned_source(copy, tmp_path, ProgressView())
    assert source.fingerprint == plan.data.fingerprint
    method = planned_method(copy)
    assert (method.name, asdict(method.options)) == (plan.method.name, plan.method.options)


class Halving(MiB):
    """A method whose options compute with what they are given."""

    @dataclass(frozen=True)
    class Options(MiB.Options):
        alpha: float = 0.5
        pairs: list[int] = field(default_factory=lambda: [1, 2])

        def __post_init__(self) -> None:
            object.__setattr__(self, "alpha", self.alpha / 2)


def test_options_go_through_their_constructor_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("prepare", "inputs"):
        monkeypatch.setattr(f"cispbench.harness.runs.{place}.load_method", lambda name: Halving)
    plan = prepared(tmp_path)
    assert plan.method.options["alpha"] == 0.25
    assert planned_method(plan).options.alpha == 0.25
    monkeypatch.setattr(Halving.Options, "__post_init__", lambda self: None)
    with pytest.raises(RunError, match=r"the options of mib are .* and were"):
        planned_method(plan)


def test_a_file_with_the_name_of_a_marker_is_loaded_like_any_other(tmp_path: Path, monkeypatch: Any) -> None:
    encoder = build_model("deeplabv3-resnet18", 64).sections()["encoder"]
    for name in ("none.pth", "imported:x.pth"):
        (tmp_path / "wd").mkdir(exist_ok=True)
        torch.save(encoder.backbone().state_dict(), tmp_path / "wd" / name)
        plan = prepared(tmp_path, model="deeplabv3-resnet18", weights=str(tmp_path / "wd" / name))
        fresh = build_model("deeplabv3-resnet18", 64)
        load_planned_weights(plan, fresh, tmp_path)
        loaded = fresh.sections()["encoder"].backbone().state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in encoder.backbone().state_dict().items())


def test_the_version_of_a_network_is_part_of_the_key_from_2_on(tmp_path: Path, monkeypatch: Any) -> None:
    before = prepared(tmp_path)
    spec = replace(model_spec("segmenter-tiny"), version=2)
    monkeypatch.setattr("cispbench.harness.runs.keys.model_spec", lambda name: spec)
    after = prepared(tmp_path)
    assert "model_version" not in before.steps[0].made_of
    assert changed_parts(before.steps[0].made_of, after.steps[0].made_of, 0) == ["model_version is 2, was not set"]
    assert before.steps[0].key != after.steps[0].key


def test_data_that_have_changed_since_the_plan_are_refused(tmp_path: Path, own_voc: Path) -> None:
    plan = prepared(tmp_path, profile="mini", data_root=own_voc.parent, weights="none")
    mask = next((own_voc / "SegmentationClassAug").glob("t*.png"))
    pixels = np.asarray(Image.open(mask)).copy()
    pixels[20:30, 20:30] = 7
    Image.fromarray(pixels).save(mask)
    with pytest.raises(DataError, match="have changed since the run was planned"):
        planned_source(plan, tmp_path, ProgressView())


def test_a_key_is_the_digest_of_its_named_parts(tmp_path: Path) -> None:
    step = prepared(tmp_path).steps[1]
    assert step.made_of["previous"] == step.previous_key
    content = json.dumps(dict(step.made_of), sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest() == step.key


def test_what_several_runs_have_in_common_is_read_once(
    tmp_path: Path, voc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def count(*words: object) -> Source:
        opened.append(words)
        return open_source(*words)  # type: ignore[arg-type]

    monkeypatch.setattr("cispbench.harness.runs.prepare.open_source", count)
    preparer = Preparer(StepStore(tmp_path), ProgressView())
    for seed in range(3):
        for method in ("mib", "finetune"):
            preparer.prepare(RunRequest(method, "overlapped-15-5", seed, "mini", data_root=voc, weights="none"))
    assert len(opened) == 1
