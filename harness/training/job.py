"""What the training of a step is given, what it returns, and the error of a training that was asked to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.distributed.division import Division
from cispbench.harness.distributed.group import ALONE, Group
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Method, StepContext
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.splits.errors import RunError


@dataclass(frozen=True)
class TrainingJob:
    """All that the training of one step needs.

    ``checkpoint``: the file that an interrupted step resumes from. ``images``: the training images of the step.
    ``stop``: asked after every iteration (with several processes: whenever losses are logged); once it returns True,
    the training saves a checkpoint and ends. ``group``: the processes that share each global batch. ``micro_batch``:
    the most images that one of them holds at once, None for its whole share. ``code``: the digest of the method's code,
    which a checkpoint keeps; None where it is not known. ``key``: that of the step, which a checkpoint keeps, too.
    """

    method: Method
    context: StepContext
    loader: TrainLoader
    phase: OptimRecipe
    device: torch.device
    seed: int
    checkpoint: Path
    view: ProgressView
    images: int
    stop: Callable[[], bool] | None = None
    group: Group = ALONE
    micro_batch: int | None = None
    code: str | None = None
    key: str | None = None

    @property
    def division(self) -> Division:
        """How each global batch is divided. Raises UsageError if it cannot be."""
        return Division(self.phase.batch, self.group.size, self.micro_batch)

    @property
    def iterations(self) -> int:
        """The step's number of iterations, one for each global batch."""
        if self.phase.iterations is not None:
            return self.phase.iterations
        return max(1, math.ceil((self.phase.epochs or 0) * len(self.loader)))


@dataclass
class TrainingLog:
    """The losses of a training over time, and its cost. Checkpoints store the fields by these names.

    ``skipped``: see ``nonfinite.py``; it is set at the end of the training.
    """

    iterations: list[int] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0  # of the iterations alone
    wall_before: float = 0.0  # all seconds of earlier, interrupted trainings of the step
    images: int = 0
    resumed: bool = False
    skipped: int = 0
    peak_host_bytes: int = 0
    peak_device_bytes: int | None = None


class StoppedError(RunError):
    """The training was asked to stop, and has saved a checkpoint."""
