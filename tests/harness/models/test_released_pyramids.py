"""Checkpoints with the names of SSUL's, BARM's and DKD's released code, and the networks that take them.

The recordings were made by that code on a tiny encoder: our networks must compute the recorded logits from them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cispbench.harness.models.aspp import PyramidConvHead, PyramidHead
from cispbench.harness.models.branches import BranchedDeepLabV3
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.deeplab import LinearDeepLab
from cispbench.harness.models.groups import AUXILIARY, Group
from cispbench.harness.models.interface import Encoder, IncrementalModel
from cispbench.harness.models.released import ReleasedState, load_released, translate
from cispbench.harness.models.released_pyramids import our_name
from cispbench.splits.errors import WeightsError
from tests.methods.conftest import _formula as formula

Recording = Mapping[str, Any]
SSUL = ((Group(extra=1, role="unknown"), Group(1, role="background"), Group(3)), (Group(2),))
BARM = ((Group(4),), (Group(2, extra=1),), (Group(1, extra=1),))
DKD = ((Group(1, role=AUXILIARY), Group(3)), (Group(2),))


class Recorded(Encoder):
    """The encoder of the recordings: two strided convolutions, each with a norm and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.width = nn.Module(), 6
        self.net.conv1, self.net.bn1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.net.conv2, self.net.bn2 = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        net = self.net
        x = net.bn2(net.conv2(net.bn1(net.conv1(images)).relu())).relu()
        return x, (x,)


class RecordedFive(Encoder):
    """The encoder of DKD's recording: five convolutions, each with a norm and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        widths, self.net, self.width = (3, 8, 8, 16, 24, 32), nn.Module(), 32
        strides = (2, 2, 2, 2, 1)
        self.net.convs = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, strides[i], 1, bias=False) for i in range(5)
        )
        self.net.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = images
        for convolution, norm in zip(self.net.convs, self.net.norms, strict=True):
            x = norm(convolution(x)).relu()
        return x, (x,)


def part(recorded: Recording, *names: str) -> dict[str, Tensor]:
    """Return the tensors of the named parts, later ones over earlier ones."""
    found: dict[str, Tensor] = {}
    for name in names:
        start = 0
        for key, shape in json.loads(str(recorded[f"{name}.layout"])):
            size = math.prod(shape)
            found[key] = torch.from_numpy(recorded[f"{name}.values"][start : start + size]).view(shape)
            start += size
    return found


def network(released: ReleasedState) -> IncrementalModel:
    model = BranchedDeepLabV3(Recorded(), PyramidHead(6, width=6, rates=(1, 2, 3)), 6)
    load_released(model, released, "the recording")
    return model.eval()


def images(recorded: Recording, step: int) -> Tensor:
    return torch.from_numpy(recorded[f"step{step}.test_images_x32"]).float() / 32


@pytest.mark.golden
@pytest.mark.parametrize(("step", "parts"), [(0, ("end0",)), (1, ("end0", "between", "end1"))])
def test_ssuls_network_computes_the_recorded_logits(golden: Path, step: int, parts: tuple[str, ...]) -> None:
    recorded = np.load(golden / "trajectory_ssul.npz")
    released = translate(part(recorded, *parts), "ssul", "the recording")
    assert (released.steps, released.groups) == (SSUL[: step + 1], (4, 2)[: step + 1])
    with torch.no_grad():
        logits = network(released)(images(recorded, step)).logits[..., ::3, ::3]
    torch.testing.assert_close(logits, torch.from_numpy(recorded[f"step{step}.test_logits"]), rtol=1e-5, atol=1e-5)


@pytest.mark.golden
@pytest.mark.parametrize("step", [0, 1, 2])
def test_barms_network_computes_the_recorded_logits(golden: Path, step: int) -> None:
    recorded = np.load(golden / "trajectory_barm.npz")
    names = ["end0", "between", "start1", "end1", "start2", "end2"][: (1, 4, 6)[step]]
    released = translate(part(recorded, *names), "barm", "the recording")
    assert (released.steps, released.groups) == (BARM[: step + 1], (4, 2, 1)[: step + 1])
    with torch.no_grad():
        first, *later = network(released)(images(recorded, step)).heads
    # The background is the sum of its channel and of every negative residual (BARM, section 3).
    background = first[:, :1] + sum(head[:, :1].clamp(max=0) for head in later)
    joined = torch.cat([background, first[:, 1:], *(head[:, 1:] for head in later)], 1)
    torch.testing.assert_close(joined, torch.from_numpy(recorded[f"step{step}.test_logits"]), rtol=1e-5, atol=1e-5)


@pytest.mark.golden
def test_dkds_network_computes_the_recorded_logits(golden: Path) -> None:
    recorded = np.load(golden / "trajectory_dkd.npz")
    state = dict(formula(golden / "trajectory_dkd_parameters.json"))
    groups = [int(count) for count in recorded["groups"]]
    for number in range(len(groups)):
        state[f"cls.{number}.weight"] = state[f"cls.{number}.weight"] * 6
        if number:
            state[f"cls.{number}.bias"] = torch.linspace(-0.5, 0.5, groups[number - 1])
    # New classes start from the auxiliary classifier.
    state |= {f"cls.3.{name}": state[f"cls.0.{name}"].repeat(groups[-1], *sizes) for name, sizes in
              (("weight", (1, 1, 1)), ("bias", ()))}  # fmt: skip
    released = translate(state, "dkd", "the recording")
    assert released.groups == (1 + groups[0], *groups[1:])
    model = LinearDeepLab(RecordedFive(), PyramidConvHead(32), 256)
    load_released(model, released, "the recording")
    with torch.no_grad():
        pixels = torch.from_numpy(recorded["images"][0]).float() / 127.5 - 1
        logits = model.eval()(pixels).logits[..., ::4, ::4]
    torch.testing.assert_close(logits, torch.from_numpy(recorded["first_logits_eval"]), rtol=1e-4, atol=1e-4)


def released_names(model: IncrementalModel, layout: str) -> dict[str, Tensor]:
    """Return a network's state under the released names, which are written out here once more."""
    state = {}
    for key, value in model.state_dict().items():
        name = key.replace("encoder.net.", "backbone.")
        if layout == "dkd":
            name = name.replace("head.", "aspp.").replace("classifiers.", "cls.")
        else:
            name = name.replace("head.", "classifier.aspp.")
            section, *rest = name.split(".")
            if section == "branches":
                group, kind, *rest = rest
                name = ".".join([_branch(layout, int(group), kind), *rest])
        state[name] = value
    return state


def _branch(layout: str, group: int, kind: str) -> str:
    if layout == "barm":
        features = f"classifier.ear.{group - 1}" if group else "classifier.head_pre"
        return features if kind == "features" else f"classifier.head.{group}"
    return f"classifier.head.{group}" if kind == "features" else f"classifier.head.{group}.3"


@pytest.mark.parametrize(
    ("layout", "name", "steps"),
    [
        ("ssul", "deeplabv3-resnet101-branches", SSUL),
        ("barm", "deeplabv3-resnet101-branches", BARM),
        ("dkd", "deeplabv3-resnet101-dkd", DKD),
    ],
)
def test_a_network_comes_back_from_its_released_names(layout: str, name: str, steps: Any) -> None:
    torch.manual_seed(0)
    model = build_model(name, 64)
    for groups in steps:
        model.grow(groups)
    state = released_names(model, layout) | {"backbone.fc.weight": torch.zeros(1000, 2048)}
    assert not {key for key in state if key.startswith(("encoder", "head", "branches", "classifiers"))}
    released = translate(state, layout, "a file")
    assert released.steps == steps
    with torch.device("meta"):
        other = build_model(name, 64)
    other.to_empty(device="cpu")
    load_released(other, released, "a file")
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.golden
@pytest.mark.parametrize(("name", "layout"), [("ssul", "ssul"), ("barm", "barm")])
def test_every_recorded_name_has_a_place(golden: Path, name: str, layout: str) -> None:
    recorded = np.load(golden / f"trajectory_{name}.npz")
    names = [key for key in recorded.files if key.endswith(".layout")]
    for key in {entry[0] for layout_name in names for entry in json.loads(str(recorded[layout_name]))}:
        assert our_name(key, layout).partition(".")[0] in ("encoder", "head", "branches")


@pytest.mark.parametrize(
    ("layout", "channels"),
    [("ssul", (1, 15)), ("ssul", (2, 1, 15)), ("barm", (16, 1)), ("dkd", (16, 5)), ("dkd", (1,))],
)
def test_groups_that_a_layout_cannot_have_are_refused(layout: str, channels: tuple[int, ...]) -> None:
    name = {"ssul": "classifier.head.{}.3.bias", "barm": "classifier.head.{}.bias", "dkd": "cls.{}.bias"}[layout]
    state = {name.format(number): torch.zeros(count) for number, count in enumerate(channels)}
    with pytest.raises(WeightsError, match=f"net.pth has groups of .* channels, which {layout} cannot have"):
        translate(state, layout, "net.pth")
