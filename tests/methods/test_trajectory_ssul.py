"""SSUL's steps 0 and 1, the second with a memory, as its released code took them (tests/golden/trajectory_ssul)."""

from __future__ import annotations

import copy
import json
import math
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
from cispbench.methods import ssul
from cispbench.splits.settings import Setting, Step
from tests.methods.test_trajectories import RELATIVE, largest

pytestmark = pytest.mark.golden
Recording = Mapping[str, Any]


def conv_norm(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class Network(nn.Module):
    """The recording's network, with the released names; ``class_groups`` as the project's networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv1, self.backbone.bn1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4, momentum=0.01)
        self.backbone.conv2, self.backbone.bn2 = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6, momentum=0.01)
        convs = [nn.Sequential(*conv_norm(6, 6, 1)), *(nn.Sequential(*conv_norm(6, 6, 3, rate)) for rate in (1, 2, 3))]
        convs.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm(6, 6, 1)))
        self.classifier = nn.Module()
        self.classifier.aspp = nn.Module()
        self.classifier.aspp.convs, self.classifier.aspp.project = (
            nn.ModuleList(convs),
            nn.Sequential(*conv_norm(30, 6, 1)),
        )
        self.classifier.head = nn.ModuleList()

    def grow(self, groups: Any) -> None:
        for group in groups:
            self.classifier.head.append(nn.Sequential(*conv_norm(6, 6, 3), nn.Conv2d(6, group.channels, 1)))

    def class_groups(self) -> list[Any]:
        return [
            SimpleNamespace(
                weight=head[3].weight, bias=head[3].bias, rows=head[3].weight.flatten(1),
                branch=SimpleNamespace(features=head[:3], classifier=head[3]),
            )
            for head in self.classifier.head
        ]  # fmt: skip

    def forward(self, images: Tensor, companions: Mapping[str, Tensor] | None = None) -> Any:
        backbone, aspp = self.backbone, self.classifier.aspp
        x = functional.relu(backbone.bn2(backbone.conv2(functional.relu(backbone.bn1(backbone.conv1(images))))))
        maps = [conv(x) for conv in aspp.convs]
        x = aspp.project(torch.cat([*maps[:-1], maps[-1].expand_as(maps[0])], 1))
        masks = torch.cat([head(x) for head in self.classifier.head], 1)
        return SimpleNamespace(logits=functional.interpolate(masks, size=images.shape[-2:], mode="bilinear"))

    def freeze_norms(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)


def state(recorded: Recording, part: str) -> dict[str, Tensor]:
    found, start = {}, 0
    for name, shape in json.loads(str(recorded[f"{part}.layout"])):
        values = recorded[f"{part}.values"][start : start + math.prod(shape)]
        found[name] = torch.from_numpy(values).view(shape)
        start += math.prod(shape)
    return found


def recorded_batches(recorded: Recording, step: int) -> list[Batch]:
    """Return the batches as the harness gives them, before ``prepare`` makes the recorded labels of them."""
    found = []
    images, target = recorded[f"step{step}.images_x32"], torch.from_numpy(recorded[f"step{step}.target"]).long()
    for iteration in range(len(images)):
        x, channels = torch.from_numpy(images[iteration]).float() / 32, target[iteration]
        classes = torch.where(channels == 255, 255, (channels - 1).clamp(min=0))
        saliency, origin = (channels == 0).long(), torch.full((len(x),), step)
        if step > 0:
            places = torch.from_numpy(recorded[f"step{step}.from_memory"][iteration]).long()
            x[places] = torch.from_numpy(recorded[f"step{step}.memory_images_x32"][iteration]).float()[places] / 32
            classes[places] = torch.from_numpy(recorded[f"step{step}.memory_target"][iteration]).long()[places]
            saliency[places], origin[places] = 1, 0  # saliency must make no difference for exemplars
        names = tuple(f"image{number}" for number in range(len(x)))
        found.append(Batch(x, classes, names, origin, {"saliency": saliency}))
    return found


@dataclass(frozen=True)
class Result:
    """What a step computed: its losses, the labels that they were computed from, and the network at its end."""

    losses: list[float]
    targets: list[Tensor]
    model: Network


def train(method: ssul.SSULM, context: StepContext, recorded: Recording, groups: list[list[nn.Parameter]]) -> Result:
    """Train a step; ``groups``: the parameters in the order of the recorded rates."""
    step, losses, targets = context.step, [], []
    optimiser = torch.optim.SGD(
        [{"params": group} for group in groups], lr=1.0, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    for batch, rates in zip(
        recorded_batches(recorded, step), recorded[f"step{step}.learning_rates"].tolist(), strict=False
    ):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate
        prepared = method.prepare(batch, context)
        previous = None
        targets.append(prepared.target)
        if context.previous is not None:
            with torch.no_grad():
                previous = context.previous(*prepared.inputs)
            targets[-1] = ssul.pseudo_labels(prepared.target, previous.logits)
        terms = method.losses(prepared, context.model(*prepared.inputs), previous, context)
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
        losses.append(sum(term.item() for term in terms.values()))
    return Result(losses, targets, context.model)


@pytest.fixture(scope="module")
def steps(golden: Path) -> tuple[Recording, dict[int, Result]]:
    recorded = dict(np.load(golden / "trajectory_ssul.npz"))
    base, new = recorded["groups"].tolist()
    setting = Setting(
        "overlapped-3-2", "voc", "overlapped", "3-2", "natural",
        (Step(0, tuple(range(1, base))), Step(1, tuple(range(base, base + new)))),
    )  # fmt: skip
    method, model = ssul.SSULM(), Network()
    model.grow(method.layout(setting, 0))
    assert not model.load_state_dict(state(recorded, "start"), strict=False).unexpected_keys
    context = StepContext(setting, 0, 0, base, model, None)
    method.initialise(context)
    first = train(method, context, recorded, [list(model.backbone.parameters()), list(model.classifier.parameters())])
    results = {0: Result(first.losses, first.targets, copy.deepcopy(model).eval())}
    model.load_state_dict(state(recorded, "between"), strict=False)
    previous = copy.deepcopy(model).eval().requires_grad_(False)
    model.grow(method.layout(setting, 1))
    context = StepContext(setting, 1, base, new, model, previous)
    method.initialise(context)
    model.requires_grad_(False)
    unknown, background, *_, last = model.classifier.head
    for head in (unknown, background, last):
        head.requires_grad_(True)
    model.train().freeze_norms()
    trained = [[p for p in head.parameters() if p.requires_grad] for head in (last, unknown, background)]
    results[1] = train(method, context, recorded, trained)
    model.eval()
    return recorded, results


@pytest.mark.parametrize("step", [0, 1])
def test_losses_and_labels(steps: Any, deviations: Any, step: int) -> None:
    recorded, results = steps
    assert torch.equal(
        torch.stack(results[step].targets), torch.from_numpy(recorded[f"step{step}.pseudo_target"]).long()
    )
    worst = max(
        abs(ours / theirs - 1)
        for ours, theirs in zip(results[step].losses, recorded[f"step{step}.loss"].tolist(), strict=True)
    )
    deviations.note(f"trajectory_ssul step {step} loss", worst, RELATIVE)
    assert worst < RELATIVE


def test_pseudo_labels_occur(steps: Any) -> None:
    """Else the test above would not see them."""
    recorded, results = steps
    changed = torch.stack(results[1].targets) != torch.from_numpy(recorded["step1.target"]).long()
    places = torch.from_numpy(recorded["step1.from_memory"]).long()
    for iteration, memory in enumerate(places):
        changed[iteration, memory] = False
    assert changed.any()


@pytest.mark.parametrize("step", [0, 1])
def test_weights_at_the_end(steps: Any, deviations: Any, step: int) -> None:
    recorded, results = steps
    found = results[step].model.state_dict()
    worst = max(largest(found[name], value) for name, value in state(recorded, f"end{step}").items())
    deviations.note(f"trajectory_ssul end{step}", worst, RELATIVE)
    assert worst < RELATIVE


@pytest.mark.parametrize("step", [0, 1])
def test_prediction(steps: Any, deviations: Any, step: int) -> None:
    recorded, results = steps
    with torch.no_grad():
        output = results[step].model(torch.from_numpy(recorded[f"step{step}.test_images_x32"]).float() / 32)
    worst = largest(output.logits[:, :, ::3, ::3], torch.from_numpy(recorded[f"step{step}.test_logits"]))
    deviations.note(f"trajectory_ssul step {step} test_logits", worst, RELATIVE)
    assert worst < RELATIVE
    found = ssul.SSULM().scores(output).argmax(1)
    assert torch.equal(found, torch.from_numpy(recorded[f"step{step}.prediction"]).long())
