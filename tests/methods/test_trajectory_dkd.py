"""A later step of DKD as its released code took it (tests/golden/trajectory_dkd)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cispbench.harness.method import Batch, StepContext
from cispbench.methods import dkd
from cispbench.splits.settings import Setting, Step
from tests.methods.conftest import _formula as formula
from tests.methods.test_trajectories import RELATIVE, largest

pytestmark = pytest.mark.golden
WIDTHS, STRIDES = (3, 8, 8, 16, 24, 32), (2, 2, 2, 2, 1)


def conv_norm(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class Network(nn.Module):
    """The recording's network, with the released names; it offers what the project's networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.aspp, self.cls = nn.Module(), nn.Module(), nn.ModuleList()
        self.backbone.convs = nn.ModuleList(
            nn.Conv2d(WIDTHS[i], WIDTHS[i + 1], 3, STRIDES[i], 1, bias=False) for i in range(5)
        )
        self.backbone.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in WIDTHS[1:])
        convs = [nn.Sequential(*conv_norm(32, 256, 1))]
        convs += [nn.Sequential(*conv_norm(32, 256, 3, rate)) for rate in (6, 12, 18)]
        convs.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm(32, 256, 1)))
        self.aspp.convs, self.aspp.project = nn.ModuleList(convs), nn.Sequential(*conv_norm(1280, 256, 1))
        self.aspp.last_conv = nn.Sequential(*conv_norm(256, 256, 3))

    def grow(self, groups: Any) -> None:
        self.cls.extend(nn.Conv2d(256, group.channels, 1) for group in groups)

    def class_groups(self) -> list[Any]:
        return [SimpleNamespace(rows=conv.weight.flatten(1), bias=conv.bias) for conv in self.cls]

    def forward(self, images: Tensor) -> Any:
        x = images
        for conv, norm in zip(self.backbone.convs, self.backbone.norms, strict=True):
            x = functional.relu(norm(conv(x)))
        maps = [conv(x) for conv in self.aspp.convs]
        x = self.aspp.last_conv(self.aspp.project(torch.cat([*maps[:-1], maps[-1].expand_as(maps[0])], 1)))
        masks = torch.cat([conv(x) for conv in self.cls], 1)
        return SimpleNamespace(
            logits=functional.interpolate(masks, size=images.shape[-2:], mode="bilinear"), stages=(x,),
            class_tokens=torch.cat([conv.weight.flatten(1) for conv in self.cls]),
        )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What the step computed: its terms by iteration, and logits before and after."""

    recorded: Mapping[str, Any]
    terms: dict[str, list[float]]
    first_logits: Tensor
    last_logits: Tensor
    model: Network


def old_model(recorded: Mapping[str, Any], folder: Path, method: dkd.DKD, setting: Setting) -> Network:
    state = dict(formula(folder / "trajectory_dkd_parameters.json"))
    for group, classes in enumerate([None, *recorded["groups"].tolist()[:-1]]):
        state[f"cls.{group}.weight"] = state[f"cls.{group}.weight"] * 6
        if classes is not None:
            state[f"cls.{group}.bias"] = torch.linspace(-0.5, 0.5, classes) if classes > 1 else torch.zeros(1)
    model = Network()
    for step in range(len(setting.steps) - 1):
        model.grow(method.layout(setting, step))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model


@pytest.fixture(scope="module")
def result(golden: Path) -> Result:
    recorded = dict(np.load(golden / "trajectory_dkd.npz"))
    groups = recorded["groups"].tolist()
    firsts = [1 + sum(groups[:step]) for step in range(len(groups))]
    steps = tuple(Step(step, tuple(range(first, first + groups[step]))) for step, first in enumerate(firsts))
    setting = Setting("overlapped-3-2", "voc", "overlapped", "3-2", "natural", steps)
    method = dkd.DKD(dkd.DKDOptions(positive_weight=float(recorded["positive_weight"])))
    model = old_model(recorded, golden, method, setting)
    previous, step = copy.deepcopy(model).eval().requires_grad_(False), len(groups) - 1
    model.grow(method.layout(setting, step))
    context = StepContext(setting, step, firsts[-1], groups[-1], model.eval(), previous)
    method.initialise(context)
    return train(method, context, recorded)


def train(method: dkd.DKD, context: StepContext, recorded: Mapping[str, Any]) -> Result:
    model = context.model
    *old, new = model.cls
    convs = [module for module in model.aspp.modules() if isinstance(module, nn.Conv2d)]
    lr, terms = float(recorded["lr"]), {}
    groups = [
        ([*model.backbone.convs.parameters()], lr, 0.0),
        ([p for module in (*convs, *old) for p in module.parameters()], 10 * lr, 0.0),
        ([*new.parameters()], 10 * lr, 1e-4),
    ]
    optimiser = torch.optim.SGD(
        [{"params": p, "lr": rate, "weight_decay": decay} for p, rate, decay in groups], momentum=0.9, nesterov=True
    )
    images = torch.from_numpy(recorded["images"]).float() / 127.5 - 1
    targets = torch.from_numpy(recorded["targets"]).long()
    iterations = len(images) * int(recorded["epochs"])
    first_logits = logits(model, images[0])
    for iteration in range(iterations):
        for group, (_, rate, _) in zip(optimiser.param_groups, groups, strict=True):
            group["lr"] = rate * (1 - iteration / iterations) ** 0.9
        place = iteration % len(images)
        batch = method.prepare(Batch(images[place], targets[place], ("a", "b")), context)
        with torch.no_grad():
            previous = context.previous(*batch.inputs)
        found = method.losses(batch, model(*batch.inputs), previous, context)
        optimiser.zero_grad()
        sum(found.values()).backward()
        optimiser.step()
        for name, term in found.items():
            terms.setdefault(name, []).append(term.item())
    return Result(recorded, terms, first_logits, logits(model, images[0]), model)


def logits(model: Network, images: Tensor) -> Tensor:
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
        worst = largest(state[name].view(value.shape), torch.from_numpy(value))
        deviations.note(f"trajectory_dkd end {name}", worst, RELATIVE)
        assert worst < RELATIVE, name
