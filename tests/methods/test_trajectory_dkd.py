"""A later step of DKD as its released code took it (tests/golden/trajectory_dkd).

The project's network, loop and recipe take it: the recipe is that of the paper, in single precision.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import StepContext
from cispbench.harness.models.aspp import PyramidConvHead
from cispbench.harness.models.deeplab import LinearDeepLab
from cispbench.harness.models.interface import Encoder
from cispbench.harness.models.released_pyramids import our_name
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.training.loop import StepTraining
from cispbench.methods.dkd import DKD, DKDOptions
from cispbench.splits.settings import Setting, Step, parse_setting
from tests.methods.conftest import RecordedBatches
from tests.methods.conftest import _formula as formula
from tests.methods.test_trajectories import RELATIVE, largest

pytestmark = pytest.mark.golden
WIDTHS, STRIDES = (3, 8, 8, 16, 24, 32), (2, 2, 2, 2, 1)


class FiveConvolutions(Encoder):
    """The recording's encoder."""

    width = 32

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.convs = nn.ModuleList(
            nn.Conv2d(WIDTHS[i], WIDTHS[i + 1], 3, STRIDES[i], 1, bias=False) for i in range(5)
        )
        self.net.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in WIDTHS[1:])

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        stages = [images]
        for conv, norm in zip(self.net.convs, self.net.norms, strict=True):
            stages.append(functional.relu(norm(conv(stages[-1]))))
        return stages[-1], tuple(stages[2:])


@dataclass(frozen=True)
class Result:
    """What the step computed: its terms by iteration, and logits before and after."""

    recorded: Mapping[str, Any]
    terms: dict[str, list[float]]
    first_logits: Tensor
    last_logits: Tensor
    model: LinearDeepLab


def old_model(recorded: Mapping[str, Any], folder: Path, method: DKD, setting: Setting) -> LinearDeepLab:
    state = {our_name(name, "dkd"): value for name, value in formula(folder / "trajectory_dkd_parameters.json")}
    for group, classes in enumerate([None, *recorded["groups"].tolist()[:-1]]):
        state[f"classifiers.{group}.weight"] = state[f"classifiers.{group}.weight"] * 6
        if classes is not None:
            state[f"classifiers.{group}.bias"] = torch.linspace(-0.5, 0.5, classes) if classes > 1 else torch.zeros(1)
    model = LinearDeepLab(FiveConvolutions(), PyramidConvHead(32), 256, kaiming=True)
    for step in range(len(setting.steps) - 1):
        model.grow(method.layout(setting, step))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model


@pytest.fixture(scope="module")
def result(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    recorded = dict(np.load(golden / "trajectory_dkd.npz"))
    recorded["images"] = recorded["images"] / np.float32(127.5) - 1
    groups, recipe = recorded["groups"].tolist(), load_recipe(DKD, parse_setting("overlapped-15-1"), "paper")
    firsts = [1 + sum(groups[:step]) for step in range(len(groups))]
    steps = tuple(Step(step, tuple(range(first, first + groups[step]))) for step, first in enumerate(firsts))
    setting = Setting("overlapped-3-2", "voc", "overlapped", "3-2", "natural", steps)
    method, step = DKD(DKDOptions(**recipe.method)), len(groups) - 1
    assert method.options.positive_weight == recorded["positive_weight"]
    model = old_model(recorded, golden, method, setting)
    previous = copy.deepcopy(model).eval().requires_grad_(False)
    model.grow(method.layout(setting, step))
    context = StepContext(setting, step, firsts[-1], groups[-1], model, previous)
    # The training initialises its network itself: the start is seen on a copy.
    initial = copy.deepcopy(model).eval()
    method.initialise(dataclasses.replace(context, model=initial))
    loader = RecordedBatches({"images": recorded["images"], "targets": recorded["targets"]})
    phase = dataclasses.replace(
        recipe.phase(step), lr=10 * float(recorded["lr"]), batch=2, epochs=float(recorded["epochs"]), precision="fp32"
    )
    job = TrainingJob(
        method=method, context=context, loader=lambda *_: loader,  # type: ignore[arg-type, return-value]
        phases={"train": phase}, device=torch.device("cpu"), seed=0,
        checkpoint=tmp_path_factory.mktemp("dkd") / "checkpoint.pt", view=ProgressView(), images=4,
    )  # fmt: skip
    log = StepTraining(job).run()
    images = loader.batches[0].images
    return Result(recorded, log.terms, logits(initial, images), logits(model.eval(), images), model)


def logits(model: LinearDeepLab, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).logits[:, :, ::4, ::4]


def test_every_term(result: Result, deviations: Any) -> None:
    terms = dict(result.terms)
    terms["total"] = [sum(values) for values in zip(*result.terms.values(), strict=True)]
    assert {f"loss.{name}" for name in terms} == {name for name in result.recorded if name.startswith("loss.")}
    for name, values in terms.items():
        theirs = result.recorded[f"loss.{name}"].tolist()
        worst = max(abs(ours / other - 1) for ours, other in zip(values, theirs, strict=True))
        deviations.note(f"trajectory_dkd loss.{name}", worst, RELATIVE)
        assert worst < RELATIVE, name


def test_logits_before_and_after(result: Result, deviations: Any) -> None:
    for name, found in (("first", result.first_logits), ("last", result.last_logits)):
        worst = largest(found, torch.from_numpy(result.recorded[f"{name}_logits_eval"]))
        deviations.note(f"trajectory_dkd {name}_logits_eval", worst, RELATIVE)
        assert worst < RELATIVE


def test_weights_at_the_end(result: Result, deviations: Any) -> None:
    state = result.model.state_dict()
    ends = {name.removeprefix("end."): value for name, value in result.recorded.items() if name.startswith("end.")}
    assert len(ends) == 9
    for name, value in ends.items():
        worst = largest(state[our_name(name, "dkd")].view(value.shape), torch.from_numpy(value))
        deviations.note(f"trajectory_dkd end {name}", worst, RELATIVE)
        assert worst < RELATIVE, name
