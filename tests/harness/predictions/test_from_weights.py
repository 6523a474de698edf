"""``cispbench panels``: its predictions are those that were scored, and what is missing or different is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cispbench.harness.data.source import find_source
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.predictions.from_weights import RecordedRun, RunPredictor, recorded_run
from cispbench.harness.recipes.fields import DataRecipe, EvaluationRecipe, Recipe
from cispbench.harness.runs.step_store import StepStore
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed
from cispbench.results.store import Store, read_record
from cispbench.splits.errors import UsageError
from cispbench.splits.settings import VOID

SETTING = "overlapped-10-5"  # of three steps
CPU = torch.device("cpu")


class Guess(nn.Module):
    """A model that tells classes by the colour of a pixel alone, otherwise after every step."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = torch.randn(classes, 3, generator=torch.Generator().manual_seed(classes))

    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.einsum("bkhw,ck->bchw", images, self.weight))


@pytest.fixture
def guessed(tmp_path: Path, make_record: Callable[..., StepRecord], monkeypatch: pytest.MonkeyPatch) -> RunPredictor:
    """Predictions of a run that nobody has trained, on a few scenes."""
    source, steps = SyntheticSource("voc", train=8, val=12), StepStore(tmp_path / "steps")
    recipe = Recipe("deeplabv3-tiny", data=DataRecipe(crop=48), evaluation=EvaluationRecipe(None, None, 5))
    data = DataUsed("synthetic", source.fingerprint, 8, 12, "ab" * 32)
    store = Store(tmp_path / "out")
    for step in range(3):
        record = make_record(SETTING, step=step, recipe=recipe.as_dict(), data=data, profile="quick")
        store.write(record)
        steps.publish(record.key, {"nothing": torch.zeros(1)}, {}, {})
    monkeypatch.setattr(
        RunPredictor, "_model", lambda self, record: Guess(self.run.trained.num_classes(record.step)), raising=True
    )
    return RunPredictor(recorded_run(store, "0123"), source, steps, CPU)


def truncated(run: RecordedRun, *steps: int) -> RecordedRun:
    return replace(run, records=tuple(run.records[step] for step in steps))


def key_of(commands: Any) -> str:
    return str(read_record(commands.records()[0]).run_key)


def words(commands: Any, *more: str, run: str | None = None) -> list[str]:
    return ["panels", run or key_of(commands)[:8], *commands.places(), "--data-root", str(commands.data), *more]


def test_the_predictions_are_those_that_were_scored(finished: Any, one_thread: None) -> None:
    run = recorded_run(Store(finished.out), key_of(finished))
    source = find_source("voc", finished.data, finished.steps)
    names = source.ids("val")
    shown = RunPredictor(run, source, StepStore(finished.steps), CPU).predict(names[::-1])
    assert [entry.name for entry in shown] == list(names[::-1])
    for place, record in enumerate(run.records):
        counts = np.zeros((21, 21), dtype=int)
        for entry in shown:
            kept = entry.truth != VOID
            np.add.at(counts, (entry.truth[kept], entry.predictions[place][kept]), 1)
        assert np.array_equal(counts, record.matrix())
    for entry in shown:
        image, _ = source.read("val", entry.name)
        # The test sees the shorter side, 48 pixels, at 32.
        small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((42, 32), Image.Resampling.BILINEAR)
        assert np.abs(entry.image.astype(int) - np.asarray(small).astype(int)).mean() < 2


def test_the_images_that_have_lost_most(guessed: RunPredictor) -> None:
    names = guessed._source.ids("val")
    plan = guessed.run.setting
    slow = {}
    for entry in guessed.predict(names):
        lost = 0
        for place, number in enumerate(entry.truth.flatten().tolist()):
            if number in (0, VOID) or number >= plan.num_classes(1):
                continue
            learnt = 0 if number < plan.num_classes(0) else 1
            then, end = (entry.predictions[step].flatten()[place] for step in (learnt, 2))
            lost += int(then == number) - int(end == number)
        slow[entry.name] = lost / int((entry.truth != VOID).sum())
    found = guessed.most_forgotten(50)
    assert [entry.name for entry in found] == sorted(slow, key=lambda name: (-slow[name], name))
    for entry in found:
        assert entry.share == pytest.approx(slow[entry.name], abs=1e-12)
    assert found[0].share > 0.01 and found[-1].share < 0
    assert guessed.most_forgotten(2) == found[:2]


def test_only_recorded_steps_count(guessed: RunPredictor) -> None:
    """A run that goes on from an imported step has no record of those before it."""
    whole = {entry.name: entry for entry in guessed.predict(guessed._source.ids("val"))}
    later = RunPredictor(truncated(guessed.run, 1, 2), guessed._source, guessed._steps, CPU)
    known = guessed.run.setting.num_classes(1)
    for entry in later.most_forgotten(50):
        truth, (_, then, end) = whole[entry.name].truth, whole[entry.name].predictions
        counted = (truth > 0) & (truth < known)
        lost = int(((then == truth) & counted).sum()) - int(((end == truth) & counted).sum())
        assert entry.share == pytest.approx(lost / int((truth != VOID).sum()), abs=1e-12)
    single = RunPredictor(truncated(guessed.run, 2), guessed._source, guessed._steps, CPU)
    with pytest.raises(UsageError, match=r"single recorded step\. Name images by --images"):
        single.most_forgotten(3)


def test_scenes_look_as_they_were_drawn(guessed: RunPredictor) -> None:
    (entry,) = guessed.predict(["val_00007"])
    image, mask = guessed._source.read("val", "val_00007")
    assert np.array_equal(entry.image, image.permute(1, 2, 0).numpy())
    assert np.array_equal(entry.truth, mask.numpy())  # in the natural order of classes
    assert len(entry.predictions) == 3 and {mask.shape for mask in entry.predictions} == {(48, 48)}


def test_a_picture_is_written_and_is_the_same_again(finished: Any, commands: Any) -> None:
    default = words(finished, "--auto", "2")
    told = commands.succeed(default).stdout
    name = f"panels-mbs-overlapped-19-1-seed0-{key_of(finished)[:10]}.png"
    assert told.startswith(f"{name}: v0")
    first = Path(name).read_bytes()
    folder = str(finished.records()[0].parent)
    again = json.loads(commands.succeed(words(finished, "--auto", "2", "--json", run=folder)).stdout)
    assert Path(name).read_bytes() == first and first.startswith(b"\x89PNG")
    assert (again["file"], again["steps"], len(again["images"])) == (name, [0, 1], 2)
    assert told == f"{name}: {', '.join(entry['image'] for entry in again['images'])}\n"
    commands.succeed(words(finished, "--images", "v003, v001,v003", "--output", "some.svg"))
    svg = Path("some.svg").read_text()
    assert svg.index("<!-- v003 -->") < svg.index("<!-- v001 -->") and svg.count("<!-- v003 -->") == 1
    for text in ("ground truth", "step 0", "step 1", "background", "void", "voc, mini data, profile mini"):
        assert f"<!-- {text}" in svg


def test_what_is_wrong_is_said(finished: Any, commands: Any, own_voc: Path) -> None:
    commands.refused(2, words(finished, "--images", "v0033"), "no test image 'v0033'", "6, v000 to v005", "'v003'?")
    commands.refused(2, words(finished, "--images", "v001", "--auto", "2"), "Leave one of them out")
    commands.refused(2, words(finished, "--output", "panels.pdf"), ".png or .svg")
    commands.refused(2, words(finished, run="ffff"), "no run in", "'ffff'", "`cispbench table --runs`")
    commands.refused(1, words(finished, "--output", "none/panels.png", "--images", "v001"), "Create none")
    elsewhere = ["--steps-dir", str(commands.steps)]
    key = read_record(finished.records()[0]).key
    commands.refused(1, words(finished, *elsewhere), f"step 0 ({key[:10]})", str(commands.steps), "another --out")
    listed = own_voc / "ImageSets" / "Segmentation" / "val.txt"
    listed.write_text("\n".join(listed.read_text().split()[1:]))
    other = ["--data-root", str(own_voc.parent)]
    commands.refused(1, words(finished, *other), "not the data of the run", "(mini data)", "--data-root")
    assert not list(Path().glob("*.png"))


def test_faulty_weights_are_told(finished: Any, commands: Any) -> None:
    shutil.copytree(finished.steps / "steps", commands.steps / "steps")
    broken = commands.steps / "steps" / read_record(finished.records()[1]).key / "weights.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1] + b"\x01")
    copied = words(finished, "--images", "v001", "--steps-dir", str(commands.steps))
    commands.refused(1, copied, "is damaged", "trains them again")


def test_masks_that_were_scored_from_files_have_no_model(
    tmp_path: Path, make_record: Callable[..., StepRecord]
) -> None:
    store = Store(tmp_path)
    store.write(make_record(origin="predictions"))
    with pytest.raises(UsageError, match="it has no models to ask"):
        recorded_run(store, "0123456789")
    store.write(make_record(run_key="01239", method="plop"))
    with pytest.raises(UsageError, match="2 runs"):
        recorded_run(store, "0123")
