"""A warning before a training under the profile paper that no GPU or no full data set stands behind.

Such a run is allowed, and may take months. Its time is estimated by one pass, forward and backward, of each network on
this machine; what a method computes besides, the loading of images and the tests come on top.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch

from cispbench.harness.machine.devices import autocast
from cispbench.harness.machine.progress import describe_seconds
from cispbench.harness.models.catalogue import build_model, least_images
from cispbench.harness.runs.plan import RunPlan, step_iterations
from cispbench.splits.datasets import dataset

_BACKGROUND_AND_CLASS = 2
_PREVIOUS = 4 / 3  # forward and backward cost three times a forward alone, which the previous network adds


class Training(NamedTuple):
    """A step that has to be trained, as a run plans it."""

    plan: RunPlan
    step: int

    @property
    def images(self) -> int:
        """How many images the training goes through, each as often as it comes up."""
        phase = self.plan.recipe.phase(self.step)
        return step_iterations(phase, self.plan.epoch_images(self.step)) * phase.batch


def paper_warnings(trainings: Sequence[Training], device: torch.device | None, parallel: int = 1) -> Iterator[str]:
    """Yield the warnings for those under the profile paper, none where there is nothing to warn of.

    The estimate of time comes last, as it takes a minute for the papers' networks on a CPU. ``device``: None for
    machines that are not this one, where no time is estimated. ``parallel``: devices that work at the same time.
    """
    without_gpu = device is not None and device.type == "cpu"
    chosen = [t for t in trainings if t.plan.profile == "paper" and (without_gpu or t.plan.data.kind != "full")]
    if not chosen:
        return
    parts = sorted({dataset(t.plan.setting.dataset).title for t in chosen if t.plan.data.kind != "full"})
    reasons = ["without a GPU"] if without_gpu else []
    reasons += [f"on a part of {' and of '.join(parts)}: NOT comparable with published numbers"] if parts else []
    yield (
        f"WARNING: the profile paper {', and '.join(reasons)}. --profile mini (small real data) and quick (built-in "
        "scenes) take minutes."
    )
    if device is not None:
        yield _estimate(chosen, device, parallel)


def _estimate(trainings: Sequence[Training], device: torch.device, parallel: int) -> str:
    seconds = 0.0
    try:
        for training in trainings:
            recipe = training.plan.recipe
            precision = recipe.phase(training.step).precision
            pace = seconds_per_image(recipe.model, recipe.data.crop, precision, device)
            seconds += training.images * pace * (_PREVIOUS if training.step else 1.0)
    except (RuntimeError, MemoryError) as error:  # as when the memory is too small; the training will say more
        return f"Its training time could not be estimated: {str(error).partition(chr(10))[0]}"
    images = sum(training.images for training in trainings)
    return (
        f"Training will take about {describe_seconds(seconds / parallel)} or more here: {images:,} images, at the pace "
        "of one pass of the network, measured now. After the first iterations the progress shows a better estimate."
    )


@cache
def seconds_per_image(model: str, crop: int, precision: str, device: torch.device) -> float:
    """Measure one pass, forward and backward, of a network with random weights over images of ``crop`` pixels a side.

    No random state of the caller changes.
    """
    count = least_images(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = build_model(model, crop)
        network.grow(_BACKGROUND_AND_CLASS)
        network.to(device).train()
        images = torch.randn(count, 3, crop, crop, device=device)
        took = 0.0
        # A GPU's first pass loads its kernels.
        for _ in range(2 if device.type == "cuda" else 1):
            _wait(device)
            began = time.perf_counter()
            with autocast(device, precision):
                loss = network(images).logits.float().mean()
            loss.backward()
            _wait(device)
            took = time.perf_counter() - began
    return took / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
