"""The recorded trajectories of the released code, run through the project's own models, methods and training loop."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Batch, Method, StepContext
from cispbench.harness.models.deeplab import DeepLabV3
from cispbench.harness.models.encoders import ResNetEncoder, ViTEncoder, leaky_relu
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.models.released import load_released, translate
from cispbench.harness.models.segmenter import MaskTransformer, Segmenter
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.registry import load_method
from cispbench.harness.training.job import TrainingJob, TrainingLog
from cispbench.harness.training.loop import StepTraining
from cispbench.splits.settings import Setting, Step

TURN = 6.283185307179586
Recording = Mapping[str, Any]


@dataclass(frozen=True)
class Trajectory:
    """A reproduced trajectory.

    ``start``: the new model's weights after the method's initialisation; ``first``: what both models compute for the
    first batch, in evaluation mode; ``log``: the terms by iteration; ``end`` and ``last_logits``: the same at the end.
    """

    name: str
    recorded: Recording
    context: StepContext
    method: Any
    start: dict[str, Tensor]
    first: dict[str, Tensor]
    log: TrainingLog
    end: dict[str, Tensor]
    last_logits: Tensor

    def state(self, part: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (ours, recorded) of every tensor recorded as ``part`` ("start", "end"), by our name."""
        layout = "segmenter" if self.name == "mbs" else "abn-deeplab"
        recorded = translate(_part(self.recorded, part), layout, part).state
        ours = self.start if part == "start" else self.end
        return {key: (ours[key], value) for key, value in recorded.items()}


class RecordedBatches:
    """Stands in for the loader of images: the recorded batches, in their order, epoch after epoch."""

    def __init__(self, recorded: Recording) -> None:
        images, targets = torch.from_numpy(recorded["images"]).float(), torch.from_numpy(recorded["targets"]).long()
        self.batches = [Batch(x, y, ("a", "b")) for x, y in zip(images, targets, strict=True)]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from ``start`` on."""
        return iter(self.batches[start:])


def reproduce(name: str, folder: Path, scratch: Path, noise: float = 0.0) -> Trajectory:
    """Run the trajectory ``name`` of ``folder``; ``noise``: relative perturbation of both models' weights."""
    recorded = dict(np.load(folder / f"trajectory_{name}.npz"))
    method = load_method(name)()
    previous, model, phase = _segmenters(recorded) if name == "mbs" else _deeplabs(name, folder, recorded)
    previous.eval().requires_grad_(False)
    _perturb(noise, previous, model)
    sizes = [int(size) for size in recorded["classes_per_step"]]
    old, new = sum(sizes[:-1]), sizes[-1]
    setting = Setting(
        "overlapped-4-2", "voc", "overlapped", "4-2", "natural",
        (Step(0, tuple(range(1, old))), Step(1, tuple(range(old, old + new)))),
    )  # fmt: skip
    context = StepContext(setting, 1, old, new, model, previous)
    # The training initialises its network itself: the start is seen on a copy.
    initial = copy.deepcopy(model).eval()
    method.initialise(replace(context, model=initial))
    loader = RecordedBatches(recorded)
    start = initial.state_dict()
    images = loader.batches[0].images
    with torch.no_grad():
        output, old = initial(images), previous(images)
    first = {"logits": output.logits, "old_logits": old.logits, "old_masks": old.masks}
    first |= {"patches": output.patches, "class_features": output.class_features}
    log = _train(method, context, loader, phase, scratch)
    with torch.no_grad():
        last = model.eval()(images).logits
    return Trajectory(name, recorded, context, method, start, first, log, dict(model.state_dict()), last)


def _train(
    method: Method, context: StepContext, loader: RecordedBatches, phase: OptimRecipe, scratch: Path
) -> TrainingLog:
    job = TrainingJob(
        method=method, context=context, loader=lambda *_: loader,  # type: ignore[arg-type, return-value]
        phases={"train": phase}, device=torch.device("cpu"), seed=0,
        checkpoint=scratch / "checkpoint.pt", view=ProgressView(), images=10,
    )  # fmt: skip
    return StepTraining(job).run()


def _part(recorded: Recording, part: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{part}."): torch.from_numpy(np.asarray(value))
        for key, value in recorded.items()
        if key.startswith(f"{part}.")
    }


def _segmenters(recorded: Recording) -> tuple[IncrementalModel, IncrementalModel, OptimRecipe]:
    """Return both models, loaded as a released checkpoint is."""
    previous, model = _segmenter(recorded), _segmenter(recorded)
    for network in (previous, model):
        load_released(network, translate(_part(recorded, "prev"), "segmenter", "prev"), "prev")
    model.grow(int(recorded["classes_per_step"][-1]))
    phase = OptimRecipe(
        lr=float(recorded["lr"]), momentum=float(recorded["momentum"]), nesterov=True,
        weight_decay=float(recorded["weight_decay"]), schedule="constant", batch=2, epochs=1,
    )  # fmt: skip
    return previous, model, phase


def _segmenter(recorded: Recording) -> Segmenter:
    from timm.models.vision_transformer import VisionTransformer

    width, heads = int(recorded["width"]), int(recorded["heads"])
    vit = VisionTransformer(
        img_size=int(recorded["image_size"]), patch_size=int(recorded["patch_size"]), embed_dim=width,
        depth=int(recorded["layers"]), num_heads=heads, num_classes=0, global_pool="", dynamic_img_size=True,
    )  # fmt: skip
    decoder = MaskTransformer(
        encoder_width=width, width=width, layers=int(recorded["decoder_layers"]), heads=heads, drop_path=0.0
    )
    return Segmenter(ViTEncoder(vit), decoder)


def _deeplabs(name: str, folder: Path, recorded: Recording) -> tuple[IncrementalModel, IncrementalModel, OptimRecipe]:
    previous = _deeplab(recorded)
    state = dict(_formula(folder / f"trajectory_{name}_parameters.json"))
    state["cls.0.weight"] = state["cls.0.weight"] * 40
    state["cls.0.bias"] = torch.linspace(0.4, -0.4, len(state["cls.0.bias"]))
    load_released(previous, translate(state, "abn-deeplab", name), name)
    model = copy.deepcopy(previous)
    model.grow(int(recorded["classes_per_step"][-1]))
    phase = OptimRecipe(
        lr=float(recorded["lr"]), momentum=float(recorded["momentum"]), nesterov=True,
        weight_decay=float(recorded["weight_decay"]), schedule="poly", power=float(recorded["poly_power"]), batch=2,
        epochs=float(recorded["epochs"]),
    )  # fmt: skip
    return previous, model, phase


def _deeplab(recorded: Recording) -> DeepLabV3:
    from torchvision.models.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, [int(blocks) for blocks in recorded["structure"]])
    return DeepLabV3(ResNetEncoder(net), hidden=int(recorded["hidden"]), activation=leaky_relu)


def _formula(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Compute the parameters as tests/golden/README.md says.

    0.011 k^2 has to be computed as (0.011 k) k: where k^2 is large, float64 rounds the two to values that differ by
    up to 1e-5, and only this one gives the recorded logits to float32's precision.
    """
    for place, (name, shape) in enumerate(sorted(json.loads(path.read_text()).items())):
        size = math.prod(shape)
        k = np.arange(size, dtype=np.float64)
        value = np.sin(0.37 * k + 1.7 * place + np.mod(0.011 * k * k, TURN))
        if name.endswith("num_batches_tracked"):
            yield name, torch.tensor(0)
            continue
        if name.endswith("running_mean"):
            value = np.zeros(size)
        elif name.endswith("running_var"):
            value = np.ones(size)
        elif len(shape) >= 2:
            value = value * math.sqrt(2 / (size // shape[0]))
        else:
            value = 0.01 * value if name.endswith("bias") else 1 + 0.05 * value
        yield name, torch.from_numpy(value.reshape(shape)).float()


def _perturb(noise: float, *models: nn.Module) -> None:
    if noise:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for model in models:
                for parameter in model.parameters():
                    parameter.mul_(1 + noise * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def trajectory(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trajectory]:
    """Reproduce a trajectory by name, once a session, in one thread (which alone fixes the order of sums)."""

    @functools.cache
    def run(name: str, noise: float = 0.0) -> Trajectory:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return reproduce(name, golden, tmp_path_factory.mktemp(name), noise)
        finally:
            torch.set_num_threads(threads)

    return run
