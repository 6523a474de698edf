"""An incremental step of RCIL, iteration by iteration, as its released code took it (tests/golden/trajectory_rcil).

The project's network, loop and recipe take it: the recipe is that of the paper, in single precision.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cispbench.harness.method import StepContext
from cispbench.harness.models import two_branches
from cispbench.harness.models.encoders import ResNetEncoder, leaky_relu
from cispbench.harness.models.merging import merge_branches
from cispbench.harness.models.released import load_released, translate
from cispbench.harness.models.two_branches import Draws, TwoBranchDeepLabV3, TwoBranches
from cispbench.harness.training.job import TrainingLog
from cispbench.methods.rcil import RCIL, RCILOptions
from cispbench.splits.settings import Setting, Step
from tests.methods.basic_trajectories import phase_of, recipe_of
from tests.methods.conftest import TURN, RecordedBatches, _formula, _train
from tests.methods.test_golden import largest

pytestmark = pytest.mark.golden
# Bounds that the recorder suggests: a change of the weights by 1e-6 moves the released code by a sixth to a third.
BOUNDS = {"cross_entropy": 5e-3, "distillation": 5e-3, "pooled_cube": 1e-3}
LOGITS = 2e-2
DRAWN = torch.tensor([0.1, 0.5, 0.9])  # draws that mean: the first branch, the second, the mean


@dataclass(frozen=True)
class Reproduced:
    """Logits of the first batch in evaluation mode at four moments, the terms, and the weights at the end."""

    recorded: dict[str, Any]
    old_logits: Tensor
    first_logits: Tensor
    last_logits: Tensor
    next_logits: Tensor
    log: TrainingLog
    end: dict[str, Tensor]


def images_of(recorded: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Compute the images as the recordings' README says."""
    times, batch, size = len(recorded["targets"]), int(recorded["batch"]), int(recorded["size"])
    k = np.arange(times * batch * 3 * size * size, dtype=np.float64)
    waves = np.sin(0.37 * k + 1.7 * int(recorded["image_seed"]) + np.mod(0.011 * k * k, TURN))
    b, t = np.arange(batch).reshape(1, -1, 1, 1, 1), np.arange(times).reshape(-1, 1, 1, 1, 1)
    values = waves.reshape(times, batch, 3, size, size) * (0.4 + 0.5 * b) + 0.6 * b - 0.3 * (t % 3)
    return values.astype(np.float32)


def network(recorded: dict[str, Any], folder: Path) -> TwoBranchDeepLabV3:
    """Build the previous model, loaded as a released checkpoint is."""
    from torchvision.models.resnet import Bottleneck, ResNet

    net = ResNet(Bottleneck, [int(blocks) for blocks in recorded["structure"]])
    encoder = ResNetEncoder(net, stem_activation=False)
    model = TwoBranchDeepLabV3(encoder, hidden=int(recorded["hidden"]), activation=leaky_relu)
    state = dict(_formula(folder / "trajectory_rcil_parameters.json"))
    state["cls.0.weight"] = state["cls.0.weight"] * float(recorded["classifier_scale"])
    state["cls.0.bias"] = torch.linspace(0.4, -0.4, len(state["cls.0.bias"]))
    load_released(model, translate(state, "rcil", "the recording"), "the recording")
    return model


class RecordedDraws(Draws):
    """Gives what the release drew: in every iteration a case for each channel, layer by layer."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes, self.read = codes.flatten().long(), 0

    def __call__(self, channels: int) -> Tensor:
        codes = self.codes[self.read : self.read + channels]
        self.read += channels
        return DRAWN[codes].view(1, channels, 1, 1)


@pytest.fixture(scope="module")
def run(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Reproduced:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # which alone fixes the order of sums
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(two_branches, "merge_branches", merged_as_recorded)
            return reproduce(golden, tmp_path_factory.mktemp("rcil"))
    finally:
        torch.set_num_threads(threads)


def merged_as_recorded(first: Any, second: Any, eps: float, plain_scale: bool) -> tuple[Tensor, Tensor]:
    """Merge with in-place ABN's scale, although the recorder's norms, as ours, have plain ones.

    They differ by 1e-5, but changes of 1e-6 at the start already show in the third digit of the terms.
    """
    assert plain_scale
    return merge_branches(first, second, eps)


def reproduce(golden: Path, scratch: Path) -> Reproduced:
    recorded = dict(np.load(golden / "trajectory_rcil.npz"))
    recorded["images"] = images_of(recorded)
    previous = network(recorded, golden)
    model = copy.deepcopy(previous)
    previous.eval().requires_grad_(False)
    old, new = (int(size) for size in recorded["classes_per_step"])
    model.grow(new)
    setting = Setting(
        "overlapped-3-2", "voc", "overlapped", "3-2", "natural",
        (Step(0, tuple(range(1, old))), Step(1, tuple(range(old, old + new)))),
    )  # fmt: skip
    recipe = recipe_of("rcil")
    method, context = RCIL(RCILOptions(**recipe.method)), StepContext(setting, 1, old, new, model, previous)
    method.initialise(context)
    with torch.no_grad():
        model.class_groups()[-1].bias.copy_(torch.from_numpy(recorded["new_bias"]))
    draws = RecordedDraws(torch.from_numpy(recorded["branch_codes"]))
    for module in model.modules():
        if isinstance(module, TwoBranches):
            module.draws = draws
    loader = RecordedBatches(recorded)
    first = loader.batches[0].images
    old_logits, first_logits = small_logits(previous, first), small_logits(model, first)
    phase = phase_of(recipe, 1, recorded)
    log = _train(method, context, loader, phase, scratch)
    assert draws.read == draws.codes.numel()
    last_logits, end = small_logits(model, first), dict(model.state_dict())
    later = copy.deepcopy(model)
    later.grow(1)
    next_logits = small_logits(later, first)[:, : old + new]
    return Reproduced(recorded, old_logits, first_logits, last_logits, next_logits, log, end)


def small_logits(model: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(images).logits[..., ::4, ::4]
    return found


@pytest.mark.parametrize("term", BOUNDS)
def test_terms(run: Reproduced, deviations: Any, term: str) -> None:
    assert run.log.terms.keys() == BOUNDS.keys()
    recorded = torch.from_numpy(run.recorded[f"loss.{term}"])
    deviation = largest(torch.tensor(run.log.terms[term]), recorded)
    deviations.note(f"trajectory_rcil loss.{term}", deviation, BOUNDS[term])
    assert deviation <= BOUNDS[term]


@pytest.mark.parametrize(
    ("ours", "recorded", "bound"),
    [
        ("old_logits", "first_old_logits", 1e-5),
        ("first_logits", "first_logits_eval", 1e-4),  # the release adds 1e-5 to a scale when it merges
        ("last_logits", "last_logits_eval", LOGITS),
        ("next_logits", "next_step_logits_eval", LOGITS),
    ],
)
def test_logits(run: Reproduced, deviations: Any, ours: str, recorded: str, bound: float) -> None:
    deviation = largest(getattr(run, ours), torch.from_numpy(run.recorded[recorded]))
    deviations.note(f"trajectory_rcil {recorded}", deviation, bound)
    assert deviation <= bound


def test_weights_at_the_end(run: Reproduced, deviations: Any) -> None:
    names = {
        "classifiers.0.weight": "cls.0.weight", "classifiers.0.bias": "cls.0.bias",
        "classifiers.1.weight": "cls.1.weight", "classifiers.1.bias": "cls.1.bias",
        "head.red_bn.weight": "head.red_bn.weight", "head.red_bn.running_mean": "head.red_bn.running_mean",
        "head.map_convs.0.first.convolutions.1.bias": "head.map_convs.1.bias",
    }  # fmt: skip
    pairs = {ours: (run.end[ours], torch.from_numpy(run.recorded[f"end.{name}"])) for ours, name in names.items()}
    row = run.end["head.map_convs.0.second.convolutions.0.weight"][0].flatten()[::64]
    pairs["second branch of the pyramid"] = row, torch.from_numpy(run.recorded["end.head.map_convs_new.0.weight_row0"])
    for name, pair in pairs.items():
        deviation = largest(*pair)
        deviations.note(f"trajectory_rcil end {name}", deviation, 1e-3)
        assert deviation <= 1e-3, name
