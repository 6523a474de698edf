"""SSUL's steps 0 and 1, the second with a memory, as its released code took them (tests/golden/trajectory_ssul).

The project's network, loop and recipe take them: the recipe is that of the paper, in single precision.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Batch, StepContext
from cispbench.harness.models.aspp import PyramidHead
from cispbench.harness.models.branches import BranchedDeepLabV3
from cispbench.harness.models.interface import Encoder
from cispbench.harness.models.released_pyramids import our_name
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.training.loop import StepTraining
from cispbench.methods.ssul import SSULM, SSULMOptions, pseudo_labels
from cispbench.splits.settings import Setting, Step, parse_setting
from tests.methods.test_trajectories import RELATIVE, largest

pytestmark = pytest.mark.golden
Recording = Mapping[str, Any]


class TwoConvolutions(Encoder):
    """The recording's encoder."""

    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.conv1, self.net.bn1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4, momentum=0.01)
        self.net.conv2, self.net.bn2 = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6, momentum=0.01)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        first = self.net.bn1(self.net.conv1(images))
        second = self.net.bn2(self.net.conv2(functional.relu(first)))
        return functional.relu(second), (first, second)


def network() -> BranchedDeepLabV3:
    return BranchedDeepLabV3(TwoConvolutions(), PyramidHead(6, width=6, rates=(1, 2, 3)), 6, dropout=0.0)


def state(recorded: Recording, part: str, layout: str = "ssul") -> dict[str, Tensor]:
    """Return a recorded state by our names; ``layout`` is the code base that named it."""
    found, start = {}, 0
    for name, shape in json.loads(str(recorded[f"{part}.layout"])):
        values = recorded[f"{part}.values"][start : start + math.prod(shape)]
        found[our_name(name, layout)] = torch.from_numpy(values).view(shape)
        start += math.prod(shape)
    return found


class RecordedBatches:
    """Stands in for the loader: batches as the harness gives them, before ``prepare`` makes the recorded labels."""

    def __init__(self, recorded: Recording, step: int) -> None:
        self.batches = [_batch(recorded, step, iteration) for iteration in range(len(recorded[f"step{step}.loss"]))]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from ``start`` on."""
        return iter(self.batches[start:])


def _batch(recorded: Recording, step: int, iteration: int) -> Batch:
    x = torch.from_numpy(recorded[f"step{step}.images_x32"][iteration]).float() / 32
    channels = torch.from_numpy(recorded[f"step{step}.target"][iteration]).long()
    classes = torch.where(channels == 255, 255, (channels - 1).clamp(min=0))
    saliency, origin = (channels == 0).long(), torch.full((len(x),), step)
    if step > 0:
        places = torch.from_numpy(recorded[f"step{step}.from_memory"][iteration]).long()
        x[places] = torch.from_numpy(recorded[f"step{step}.memory_images_x32"][iteration]).float()[places] / 32
        classes[places] = torch.from_numpy(recorded[f"step{step}.memory_target"][iteration]).long()[places]
        saliency[places], origin[places] = 1, 0  # saliency must make no difference for exemplars
    return Batch(x, classes, tuple(f"image{number}" for number in range(len(x))), origin, {"saliency": saliency})


@dataclass(frozen=True)
class Result:
    """What a step computed: its losses, and the networks at its start and end."""

    losses: list[float]
    context: StepContext
    start: dict[str, Tensor]
    model: BranchedDeepLabV3


@pytest.fixture(scope="module")
def recorded(golden: Path) -> Recording:
    return dict(np.load(golden / "trajectory_ssul.npz"))


@pytest.fixture(scope="module")
def results(recorded: Recording, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Result]:
    recipe = load_recipe(SSULM, parse_setting("overlapped-15-1"), "paper")
    method = SSULM(SSULMOptions(**recipe.method))
    base, new = recorded["groups"].tolist()
    setting = Setting(
        "overlapped-3-2", "voc", "overlapped", "3-2", "natural",
        (Step(0, tuple(range(1, base))), Step(1, tuple(range(base, base + new)))),
    )  # fmt: skip
    model, previous, found = network(), None, {}
    for step in (0, 1):
        model.grow(method.layout(setting, step))
        if step == 0:
            _load(model, state(recorded, "start"))
        start = copy.deepcopy(model.state_dict())
        context = StepContext(setting, step, base * step, (base, new)[step], model, previous)
        phase = dataclasses.replace(recipe.phase(step), batch=4, epochs=1, precision="fp32")
        loader = RecordedBatches(recorded, step)
        job = TrainingJob(
            method=method, context=context, loader=lambda *_, loader=loader: loader,  # type: ignore[misc]
            phases={"train": phase}, device=torch.device("cpu"), seed=0,
            checkpoint=tmp_path_factory.mktemp("ssul") / "checkpoint.pt", view=ProgressView(), images=12,
        )  # fmt: skip
        losses = StepTraining(job).run().terms["binary_cross_entropy"]
        found[step] = Result(losses, context, start, copy.deepcopy(model).eval())
        if step == 0:
            _load(model, state(recorded, "between"))
            previous = copy.deepcopy(model).eval().requires_grad_(False)
    return found


def _load(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    assert not model.load_state_dict(values, strict=False).unexpected_keys


@pytest.mark.parametrize("step", [0, 1])
def test_losses(recorded: Recording, results: dict[int, Result], deviations: Any, step: int) -> None:
    pairs = zip(results[step].losses, recorded[f"step{step}.loss"].tolist(), strict=True)
    worst = max(abs(ours / theirs - 1) for ours, theirs in pairs)
    deviations.note(f"trajectory_ssul step {step} loss", worst, RELATIVE)
    assert worst < RELATIVE


@pytest.mark.parametrize("step", [0, 1])
def test_labels(recorded: Recording, results: dict[int, Result], step: int) -> None:
    context, method, changed = results[step].context, SSULM(), 0
    theirs = torch.from_numpy(recorded[f"step{step}.pseudo_target"]).long()
    for batch, expected in zip(RecordedBatches(recorded, step).batches, theirs, strict=True):
        prepared = method.prepare(batch, context)
        target = prepared.target
        if context.previous is not None:
            with torch.no_grad():
                target = pseudo_labels(target, context.previous(*prepared.inputs).logits)
        assert torch.equal(target, expected)
        changed += int((target != prepared.target).sum())
    assert changed == (0, 57)[step]


@pytest.mark.parametrize("step", [0, 1])
def test_weights_at_the_end(recorded: Recording, results: dict[int, Result], deviations: Any, step: int) -> None:
    found, expected = results[step].model.state_dict(), state(recorded, f"end{step}")
    worst = max(largest(found[name], value) for name, value in expected.items())
    deviations.note(f"trajectory_ssul end{step}", worst, RELATIVE)
    assert worst < RELATIVE
    for name in found.keys() - expected.keys():  # what a step did not change is not recorded
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(found[name], results[step].start[name]), name


@pytest.mark.parametrize("step", [0, 1])
def test_prediction(recorded: Recording, results: dict[int, Result], deviations: Any, step: int) -> None:
    with torch.no_grad():
        output = results[step].model(torch.from_numpy(recorded[f"step{step}.test_images_x32"]).float() / 32)
    worst = largest(output.logits[:, :, ::3, ::3], torch.from_numpy(recorded[f"step{step}.test_logits"]))
    deviations.note(f"trajectory_ssul step {step} test_logits", worst, RELATIVE)
    assert worst < RELATIVE
    found = SSULM().scores(output).argmax(1)
    assert torch.equal(found, torch.from_numpy(recorded[f"step{step}.prediction"]).long())
