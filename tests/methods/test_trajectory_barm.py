"""BARM's steps 0, 1 and 2, iteration by iteration, as its released code took them (tests/golden/trajectory_barm).

The project's network, loop and recipe take them: the recipe is that of the paper, in single precision.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Batch, StepContext
from cispbench.harness.models.branches import BranchedDeepLabV3
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.training.loop import StepTraining
from cispbench.harness.training.optimisation import build_optimizer
from cispbench.methods.barm import BARM, BARMOptions, join_heads
from cispbench.methods.ssul import pseudo_labels
from cispbench.splits.settings import Setting, Step, parse_setting
from tests.methods.test_golden import largest
from tests.methods.test_trajectory_ssul import Recording, network
from tests.methods.test_trajectory_ssul import state as state_by_layout

pytestmark = pytest.mark.golden
RELATIVE = 1e-3  # of the terms; that on features starts at 0 and stays tiny
CLOSE = 1e-6  # of weights, whose smallest recorded change by more than rounding is 3e-5, and of logits
WEIGHTS = {"cross_entropy": 1, "triplet": 5, "feature": 4, "group": 1, "background": 1}
STEPS = (0, 1, 2)


def state(recorded: Recording, part: str) -> dict[str, Tensor]:
    return state_by_layout(recorded, part, "barm")


class RecordedBatches:
    """Stands in for the loader: the recorded batches, in the same order in every epoch."""

    def __init__(self, recorded: Recording, step: int) -> None:
        images = torch.from_numpy(recorded[f"step{step}.images_x32"]).float() / 32
        targets = torch.from_numpy(recorded[f"step{step}.target"]).long()
        self.batches = [Batch(x, y, ("a", "b", "c")) for x, y in zip(images, targets, strict=True)]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from ``start`` on."""
        return iter(self.batches[start:])


@dataclass(frozen=True)
class Result:
    """What a step computed: its weighted terms, and the weights at its start and end."""

    terms: dict[str, list[float]]
    context: StepContext
    phase: OptimRecipe
    start: dict[str, Tensor]
    model: BranchedDeepLabV3


@pytest.fixture(scope="module")
def recorded(golden: Path) -> Recording:
    return dict(np.load(golden / "trajectory_barm.npz"))


@pytest.fixture(scope="module")
def results(recorded: Recording, tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    recipe = load_recipe(BARM, parse_setting("overlapped-15-1"), "paper")
    method = BARM(BARMOptions(**recipe.method))
    sizes, epochs = recorded["groups"].tolist(), recorded["epochs"].tolist()
    ends = np.cumsum(sizes).tolist()
    firsts = [1, *ends]
    steps = tuple(Step(step, tuple(range(firsts[step], ends[step]))) for step in STEPS)
    setting = Setting("overlapped-3-2", "voc", "overlapped", "3-2", "natural", steps)
    model, previous, found = network(), None, []
    for step in STEPS:
        model.grow(method.layout(setting, step))
        _load(model, _drawn(recorded, step))
        context = StepContext(setting, step, ends[step] - sizes[step], sizes[step], model, previous)
        phase = dataclasses.replace(recipe.phase(step), batch=3, epochs=epochs[step], precision="fp32")
        loader = RecordedBatches(recorded, step)
        job = TrainingJob(
            method=method, context=context, loader=lambda *_, loader=loader: loader,  # type: ignore[misc]
            phases={"train": phase}, device=torch.device("cpu"), seed=0,
            checkpoint=tmp_path_factory.mktemp("barm") / "checkpoint.pt", view=ProgressView(), images=3 * len(loader),
        )  # fmt: skip
        terms = StepTraining(job).run().terms
        found.append(Result(terms, context, phase, _start(method, context, recorded), copy.deepcopy(model).eval()))
        if step == 0:
            _load(model, state(recorded, "between"))
        previous = copy.deepcopy(model).eval().requires_grad_(False)
    return found


def _drawn(recorded: Recording, step: int) -> dict[str, Tensor]:
    """Return what the release drew at random: everything at step 0, later the new classifier alone."""
    start = state(recorded, f"start{step}")
    return {name: values for name, values in start.items() if step == 0 or ".classifier." in name}


def _start(method: BARM, context: StepContext, recorded: Recording) -> dict[str, Tensor]:
    """Return the weights with which the step's first iteration began."""
    model = network()
    for step in range(context.step + 1):
        model.grow(method.layout(context.setting, step))
    _load(model, {} if context.previous is None else context.previous.state_dict())
    _load(model, _drawn(recorded, context.step))
    method.initialise(dataclasses.replace(context, model=model))
    return model.state_dict()


def _load(model: BranchedDeepLabV3, values: dict[str, Tensor]) -> None:
    assert not model.load_state_dict(values, strict=False).unexpected_keys


@pytest.mark.parametrize("step", STEPS)
def test_every_term(recorded: Recording, results: list[Result], deviations: Any, step: int) -> None:
    terms = results[step].terms
    assert terms.keys() == {name for name in WEIGHTS if f"step{step}.{name}" in recorded}
    found = {name: torch.tensor(values) / WEIGHTS[name] for name, values in terms.items()}
    found["total"] = torch.tensor(list(terms.values())).sum(0)
    for name, values in found.items():
        expected = torch.from_numpy(recorded[f"step{step}.{name}"])
        assert len(values) == len(expected)
        deviation = largest(values, expected)
        deviations.note(f"trajectory_barm step{step}.{name}", deviation, RELATIVE)
        assert deviation <= RELATIVE, name


@pytest.mark.parametrize("moment", ["start", "end"])
@pytest.mark.parametrize("step", STEPS)
def test_weights(recorded: Recording, results: list[Result], deviations: Any, step: int, moment: str) -> None:
    ours = results[step].start if moment == "start" else results[step].model.state_dict()
    for name, values in state(recorded, f"{moment}{step}").items():
        deviation = float((ours[name] - values).abs().max())
        deviations.note(f"trajectory_barm {moment}{step} (absolute)", deviation, CLOSE)
        assert deviation <= CLOSE, name


@pytest.mark.parametrize("step", [1, 2])
def test_what_a_step_does_not_record_has_not_changed(recorded: Recording, results: list[Result], step: int) -> None:
    before, after = results[step].start, results[step].model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed <= set(state(recorded, f"end{step}"))


@pytest.mark.parametrize("step", [1, 2])
def test_learning_rates(recorded: Recording, results: list[Result], step: int) -> None:
    """Old branches change by less than rounding, so that their rates do not show in their weights."""
    parts = ("new head", "new ear", "pyramid", "old heads", "old ears", "first ear", "encoder")
    theirs = dict(zip(parts, recorded[f"step{step}.learning_rates"][0].tolist(), strict=True))
    context = dataclasses.replace(results[step].context, model=results[step].model)  # as the step left it
    optimizer = build_optimizer(context, results[step].phase, torch.device("cpu"))
    ours = {id(one): group["base_lr"] for group in optimizer.param_groups for one in group["params"]}
    for name, parameter in context.model.named_parameters():
        if id(parameter) in ours:
            assert ours[id(parameter)] == pytest.approx(theirs[_part(name, step)], rel=1e-6), name


def _part(name: str, step: int) -> str:
    """Return which of the recorded rates a parameter has."""
    section, place, *rest = name.split(".")
    if section != "branches":
        return {"encoder": "encoder", "head": "pyramid"}[section]
    if "classifier" in rest:
        return "new head" if int(place) == step else "old heads"
    return "new ear" if int(place) == step else "first ear" if place == "0" else "old ears"


@pytest.mark.parametrize("step", STEPS)
def test_predictions(recorded: Recording, results: list[Result], deviations: Any, step: int) -> None:
    with torch.no_grad():
        output = results[step].model(torch.from_numpy(recorded[f"step{step}.test_images_x32"]).float() / 32)
    name = f"step{step}.test_logits"
    deviation = largest(join_heads(output.heads, training=False), torch.from_numpy(recorded[name]))
    deviations.note(f"trajectory_barm {name}", deviation, CLOSE)
    assert deviation <= CLOSE
    prediction = torch.from_numpy(recorded[f"step{step}.prediction"]).long()
    assert torch.equal(BARM().scores(output).argmax(1), prediction)


def test_pseudo_labels_occur(recorded: Recording, results: list[Result]) -> None:
    """Without the overwritten classifier between the steps no pixel would be pseudo-labelled (29 are)."""
    previous, changed = results[1].context.previous, 0
    assert previous is not None
    for batch in RecordedBatches(recorded, 1).batches:
        with torch.no_grad():
            logits = previous(batch.images).logits
        changed += int((pseudo_labels(batch.target, logits, 0.7, background=0) != batch.target).sum())
    assert changed == 29
