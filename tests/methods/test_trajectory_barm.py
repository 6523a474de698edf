"""Three steps of BARM, iteration by iteration, as its released code took them (tests/golden/trajectory_barm).

The project's network, loop and recipe take them: the recipe is that of the paper, in single precision.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Batch, StepContext
from cispbench.harness.models.branches import BranchedDeepLabV3
from cispbench.harness.models.released_pyramids import our_name
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.training.loop import StepTraining
from cispbench.methods import barm
from cispbench.splits.settings import Setting, Step, parse_setting
from tests.methods.test_golden import largest
from tests.methods.test_trajectory_ssul import network

pytestmark = pytest.mark.golden
RELATIVE = 1e-3  # of the terms; that on features starts at 0 and stays tiny
CLOSE = 1e-5  # of weights and logits
WEIGHTS = {"cross_entropy": 1, "triplet": 5, "feature": 4, "group": 1, "background": 1}


@dataclass
class Reproduced:
    """What three steps computed, by the recorded names; ``previous``: the networks that later steps see."""

    recorded: dict[str, Any]
    terms: dict[str, list[float]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    previous: list[BranchedDeepLabV3] = field(default_factory=list)


def state(recorded: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Return a recorded state by our names."""
    layout = json.loads(str(recorded[f"{name}.layout"]))
    values = torch.from_numpy(recorded[f"{name}.values"])
    pieces = values.split([int(np.prod(shape)) for _, shape in layout])
    return {our_name(key, "barm"): piece.view(shape) for (key, shape), piece in zip(layout, pieces, strict=True)}


@pytest.fixture(scope="module")
def run(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Reproduced:
    recorded = dict(np.load(golden / "trajectory_barm.npz"))
    recipe = load_recipe(barm.BARM, parse_setting("overlapped-15-1"), "paper")
    sizes = [int(size) for size in recorded["groups"]]
    ends = np.cumsum(sizes).tolist()
    firsts = [1, *ends]
    steps = tuple(Step(step, tuple(range(firsts[step], end))) for step, end in enumerate(ends))
    setting = Setting("overlapped-3-2", "voc", "overlapped", "3-2", "natural", steps)
    found, model, previous = Reproduced(recorded), network(), None
    method = barm.BARM(barm.BARMOptions(**recipe.method))
    for step, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        model.grow(method.layout(setting, step))
        fill_in(model, state(recorded, f"start{step}"), step)
        context = StepContext(setting, step, end - size, size, model, previous)
        # The training initialises its network itself: the start is seen on a copy.
        initial = copy.deepcopy(model)
        method.initialise(dataclasses.replace(context, model=initial))
        found.states[f"start{step}"] = dict(initial.state_dict())
        loader, epochs = RecordedBatches(recorded, step), float(recorded["epochs"][step])
        phase = dataclasses.replace(recipe.phase(step), batch=3, epochs=epochs, precision="fp32")
        job = TrainingJob(
            method=method, context=context, loader=lambda *_, loader=loader: loader,  # type: ignore[misc]
            phases={"train": phase}, device=torch.device("cpu"), seed=0,
            checkpoint=tmp_path_factory.mktemp("barm") / "checkpoint.pt", view=ProgressView(), images=3 * len(loader),
        )  # fmt: skip
        note(found, step, StepTraining(job).run().terms)
        found.states[f"end{step}"] = {key: value.clone() for key, value in model.state_dict().items()}
        predict(method, model, step, found)
        if step == 0:
            model.load_state_dict(model.state_dict() | state(recorded, "between"))
        previous = copy.deepcopy(model).eval().requires_grad_(False)
        found.previous.append(previous)
    return found


def fill_in(model: BranchedDeepLabV3, start: dict[str, Tensor], step: int) -> None:
    """Give the network what the release drew at random: everything at step 0, later the new classifier alone."""
    drawn = {key: value for key, value in start.items() if step == 0 or ".classifier." in key}
    missing, unexpected = model.load_state_dict(drawn, strict=False)
    assert not unexpected
    assert step > 0 or all(key.endswith("num_batches_tracked") for key in missing)


class RecordedBatches:
    """Stands in for the loader: the recorded batches of a step, in order."""

    def __init__(self, recorded: dict[str, Any], step: int) -> None:
        images = torch.from_numpy(recorded[f"step{step}.images_x32"]).float() / 32
        targets = torch.from_numpy(recorded[f"step{step}.target"]).long()
        self.batches = [Batch(x, y, ("a", "b", "c")) for x, y in zip(images, targets, strict=True)]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from ``start`` on."""
        return iter(self.batches[start:])


def note(found: Reproduced, step: int, terms: dict[str, list[float]]) -> None:
    for name, values in terms.items():
        found.terms[f"step{step}.{name}"] = [value / WEIGHTS[name] for value in values]
    found.terms[f"step{step}.total"] = [sum(values) for values in zip(*terms.values(), strict=True)]


def predict(method: barm.BARM, model: BranchedDeepLabV3, step: int, found: Reproduced) -> None:
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
    assert changed
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
    changed = 0
    for batch in RecordedBatches(run.recorded, 1).batches:
        with torch.no_grad():
            logits = run.previous[0](batch.images).logits
        changed += int((barm.pseudo_labels(batch.target, logits, 0.7, background=0) != batch.target).sum())
    assert changed == 29
