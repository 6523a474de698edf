"""Three steps of BARM, iteration by iteration, as its released code took them (tests/golden/trajectory_barm)."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cispbench.harness.method import Batch, Output, StepContext
from cispbench.methods import barm
from cispbench.splits.settings import Setting, Step
from tests.methods.test_golden import largest

pytestmark = pytest.mark.golden
RELATIVE = 1e-3  # of the terms; that on features starts at 0 and stays tiny
CLOSE = 1e-5  # of weights and logits
WEIGHTS = {"cross_entropy": 1, "triplet": 5, "feature": 4, "group": 1, "background": 1}


def block(inputs: int, outputs: int, side: int, dilation: int = 1, momentum: float = 0.1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, side, padding=dilation * (side // 2), dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs, momentum=momentum), nn.ReLU())


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4, momentum=0.01)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return out


class Pyramid(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), *block(width, width, 1))
        self.convs = nn.ModuleList([block(width, width, 1), *(block(width, width, 3, r) for r in (1, 2, 3)), pooled])
        self.project = block(5 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [convolution(x).expand(-1, -1, *x.shape[-2:]) for convolution in self.convs]
        out: Tensor = self.project(torch.cat(maps, 1))
        return out


class Network(nn.Module):
    """The recorded network, with the release's names, and the outputs and groups of our contract."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width, self.backbone, self.classifier = width, Backbone(), nn.Module()
        parts: Any = self.classifier
        parts.aspp, parts.head_pre = Pyramid(width), block(width, width, 3)
        parts.ear, parts.head = nn.ModuleList(), nn.ModuleList()

    def grow(self, groups: Any) -> None:
        parts: Any = self.classifier
        for group in groups:
            if len(parts.head):
                parts.ear.append(block(self.width, self.width, 3))
            parts.head.append(nn.Conv2d(self.width, group.channels, 1))

    def class_groups(self) -> list[Any]:
        parts: Any = self.classifier
        return [SimpleNamespace(branch=SimpleNamespace(features=ear)) for ear in (parts.head_pre, *parts.ear)]

    def forward(self, images: Tensor) -> Output:
        parts: Any = self.classifier
        shared = parts.aspp(self.backbone(images))
        features = tuple(ear(shared) for ear in (parts.head_pre, *parts.ear))
        heads = tuple(head(map_) for head, map_ in zip(parts.head, features, strict=True))
        masks, none = torch.cat(heads, 1), torch.empty(0)
        logits = functional.interpolate(masks, size=images.shape[-2:], mode="bilinear", align_corners=False)
        extras = {"branch_features": features}
        return Output(logits, masks, none, none, none, shared, heads=heads, extras=extras)

    def parameter_groups(self, step: int) -> list[list[nn.Parameter]]:
        """Return the parameters in the order of the recorded learning rates."""
        parts: Any = self.classifier
        if step == 0:
            return [list(self.backbone.parameters()), list(parts.parameters())]
        modules = [parts.head[-1], parts.ear[-1], parts.aspp, parts.head[:-1], parts.ear[:-1], parts.head_pre]
        return [list(module.parameters()) for module in (*modules, self.backbone)]


@dataclass
class Reproduced:
    """What three steps computed, by the recorded names."""

    recorded: dict[str, Any]
    terms: dict[str, list[float]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    changed: dict[str, set[str]] = field(default_factory=dict)


def state(recorded: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Return a recorded state by the release's names."""
    layout = json.loads(str(recorded[f"{name}.layout"]))
    values = torch.from_numpy(recorded[f"{name}.values"])
    pieces = values.split([int(np.prod(shape)) for _, shape in layout])
    return {key: piece.view(shape) for (key, shape), piece in zip(layout, pieces, strict=True)}


@pytest.fixture(scope="module")
def run(golden: Path) -> Reproduced:
    recorded = dict(np.load(golden / "trajectory_barm.npz"))
    sizes = [int(size) for size in recorded["groups"]]
    ends = np.cumsum(sizes).tolist()
    firsts = [1, *ends]
    steps = tuple(Step(step, tuple(range(firsts[step], end))) for step, end in enumerate(ends))
    setting = Setting("overlapped-3-2", "voc", "overlapped", "3-2", "natural", steps)
    found, model, previous = Reproduced(recorded), Network(), None
    method = barm.BARM()
    for step, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        model.grow(method.layout(setting, step))
        fill_in(model, state(recorded, f"start{step}"), step)
        context = StepContext(setting, step, end - size, size, model, previous)  # type: ignore[arg-type]
        method.initialise(context)
        found.states[f"start{step}"] = {key: value.clone() for key, value in model.state_dict().items()}
        train(method, context, found)
        found.states[f"end{step}"] = {key: value.clone() for key, value in model.state_dict().items()}
        predict(method, model, step, found)
        if step == 0:
            model.load_state_dict(model.state_dict() | state(recorded, "between"))
        previous = copy.deepcopy(model).eval().requires_grad_(False)
    return found


def fill_in(model: Network, start: dict[str, Tensor], step: int) -> None:
    """Give the network what the release drew at random: everything at step 0, later the new classifier alone."""
    drawn = {key: value for key, value in start.items() if step == 0 or key.startswith("classifier.head.")}
    missing, unexpected = model.load_state_dict(drawn, strict=False)
    assert not unexpected
    assert step > 0 or all(key.endswith("num_batches_tracked") for key in missing)


def batches(recorded: dict[str, Any], step: int) -> Iterator[Batch]:
    images = torch.from_numpy(recorded[f"step{step}.images_x32"]).float() / 32
    targets = torch.from_numpy(recorded[f"step{step}.target"]).long()
    for _ in range(int(recorded["epochs"][step])):
        for x, y in zip(images, targets, strict=True):
            yield Batch(x, y, ("a", "b", "c"))


def train(method: barm.BARM, context: StepContext, found: Reproduced) -> None:
    """Call the hooks in the order of the contract; norms are frozen from step 1 on, as the recipe has it."""
    model: Any = context.model.train()
    step, rates = context.step, found.recorded[f"step{context.step}.learning_rates"].tolist()
    if step:
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.eval().requires_grad_(False)
    groups = [{"params": parameters, "lr": 0.0} for parameters in model.parameter_groups(step)]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for iteration, loaded in enumerate(batches(found.recorded, step)):
        for group, rate in zip(optimizer.param_groups, rates[iteration], strict=True):
            group["lr"] = rate
        batch = method.prepare(loaded, context)
        with torch.no_grad():
            previous = None if context.previous is None else context.previous(batch.images)
        losses = method.losses(batch, model(batch.images), previous, context)
        optimizer.zero_grad()
        total = torch.stack(list(losses.values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for name, term in losses.items():
            found.terms.setdefault(f"step{step}.{name}", []).append(term.item() / WEIGHTS[name])
        found.terms.setdefault(f"step{step}.total", []).append(total.item())
    method.after_training(context)


def predict(method: barm.BARM, model: Network, step: int, found: Reproduced) -> None:
    with torch.no_grad():
        output = model.eval()(torch.from_numpy(found.recorded[f"step{step}.test_images_x32"]).float() / 32)
    found.tensors[f"step{step}.test_logits"] = barm.join_heads(output.heads, training=False)
    found.tensors[f"step{step}.prediction"] = method.scores(output).argmax(1)


def test_every_term(run: Reproduced, deviations: Any) -> None:
    names = {f"step{step}.{name}" for step in range(3) for name in (*WEIGHTS, "total")}
    assert run.terms.keys() == names & run.recorded.keys()
    for name, values in run.terms.items():
        recorded = torch.from_numpy(run.recorded[name])
        assert len(values) == len(recorded)
        deviation = largest(torch.tensor(values), recorded)
        deviations.note(f"trajectory_barm {name}", deviation, RELATIVE)
        assert deviation <= RELATIVE, name


@pytest.mark.parametrize("part", [f"{moment}{step}" for moment in ("start", "end") for step in range(3)])
def test_weights(run: Reproduced, deviations: Any, part: str) -> None:
    recorded, ours = state(run.recorded, part), run.states[part]
    for name, values in recorded.items():
        deviation = float((ours[name] - values).abs().max())
        deviations.note(f"trajectory_barm {part} (absolute)", deviation, CLOSE)
        assert deviation <= CLOSE, name


@pytest.mark.parametrize("step", [1, 2])
def test_what_a_step_does_not_record_has_not_changed(run: Reproduced, step: int) -> None:
    before, after = run.states[f"start{step}"], run.states[f"end{step}"]
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed <= set(state(run.recorded, f"end{step}"))


@pytest.mark.parametrize("step", [0, 1, 2])
def test_predictions(run: Reproduced, deviations: Any, step: int) -> None:
    name = f"step{step}.test_logits"
    deviation = largest(run.tensors[name], torch.from_numpy(run.recorded[name]))
    deviations.note(f"trajectory_barm {name}", deviation, CLOSE)
    assert deviation <= CLOSE
    prediction = torch.from_numpy(run.recorded[f"step{step}.prediction"]).long()
    assert torch.equal(run.tensors[f"step{step}.prediction"], prediction)


def test_pseudo_labels_occur(run: Reproduced) -> None:
    """Without the overwritten classifier between the steps no pixel would be pseudo-labelled (29 are)."""
    previous = Network()
    previous.grow([SimpleNamespace(channels=int(run.recorded["groups"][0]))])
    previous.load_state_dict(run.states["end0"] | state(run.recorded, "between"))
    changed = 0
    images = torch.from_numpy(run.recorded["step1.images_x32"]).float() / 32
    for x, y in zip(images, torch.from_numpy(run.recorded["step1.target"]).long(), strict=True):
        with torch.no_grad():
            logits = previous.eval()(x).logits
        changed += int((barm.pseudo_labels(y, logits, 0.7, background=0) != y).sum())
    assert changed == 29
