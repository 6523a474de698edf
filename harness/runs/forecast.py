"""A warning before a training under the profile paper that no GPU or no full data set stands behind.

Such a run is allowed, and may take months. Its time is that of the operations that ``sweep --plan --on cpu`` counts, at
the pace of a pass of each network on this machine; the loading of images and the tests come on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from cispbench.harness.cost.measured import network_speed
from cispbench.harness.machine.progress import describe_seconds
from cispbench.harness.runs.step_cost import StepCosts, Training
from cispbench.splits.datasets import dataset


def paper_warnings(trainings: Sequence[Training], device: torch.device | None, parallel: int = 1) -> Iterator[str]:
    """Yield the warnings for those under the profile paper, none where there is nothing to warn of.

    The estimate of time comes last, as it takes seconds for each network. ``device``: None for machines that are not
    this one, where no time is estimated. ``parallel``: devices that work at the same time.
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
    costs, seconds = StepCosts(), 0.0
    try:
        for training in trainings:
            for work in (phase.work for phase in costs.training(training)):
                seconds += work.flops.total / network_speed(work.model, work.crop, work.precision, device)
    # For lack of memory, or whatever a network's code raises: an estimate ends no training, which will say more.
    except Exception as error:  # noqa: BLE001 (foreign code)
        return f"Its training time could not be estimated: {(str(error) or type(error).__name__).partition(chr(10))[0]}"
    images = sum(training.images for training in trainings)
    return (
        f"Training will take about {describe_seconds(seconds / parallel)} or more here: {images:,} images, at the pace "
        "of one pass of the network, measured now. After the first iterations the progress shows a better estimate."
    )
