"""What the training of a step is given, what it returns, and the error of a training that was asked to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.distributed.division import Division
from cispbench.harness.distributed.group import ALONE, Group
from cispbench.harness.machine.acceleration import NONE, Acceleration
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.machine.seeds import derive_seed
from cispbench.harness.method import Batch, Method, StepContext
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.step import TRAIN, View
from cispbench.splits.errors import RunError

Passes = Callable[[View, int | None, Sequence[str] | None], Iterable[Batch]]  # see ``StepContext.batches``


@dataclass(frozen=True)
class TrainingJob:
    """All that the training of one step needs.

    ``phases``: the recipe of each phase by its name, in their order. ``loader``: makes the loader of a phase.
    ``passes``: makes what serves ``context.batches`` from a loader; None where the first epoch alone is served.
    ``checkpoint``: the file that an interrupted step resumes from. ``images``: the training images of the step.
    ``stop``: asked after every iteration (with several processes: whenever losses are logged) and between phases; once
    it returns True, the training saves a checkpoint and ends. ``group``: the processes that share each global batch.
    ``micro_batch``: the most images that one of them holds at once, None for its whole share. ``code``: the digest of
    the method's code, which a checkpoint keeps; None where it is not known. ``key``: that of the step, which a
    checkpoint keeps, too. ``acceleration``: what is switched on; the
    training itself compiles the networks, and whoever calls it sees to the rest.
    """

    method: Method
    context: StepContext
    phases: Mapping[str, OptimRecipe]
    loader: Callable[[str], TrainLoader]
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
    acceleration: Acceleration = NONE
    passes: Callable[[TrainLoader], Passes] | None = None


@dataclass(frozen=True)
class Phase:
    """One of the step's optimisations; ``before``: how many iterations the phases before it have."""

    name: str
    recipe: OptimRecipe
    loader: TrainLoader
    iterations: int
    before: int

    def seed(self, job: TrainingJob) -> int:
        """Return the seed of its hooks and iterations."""
        return job.seed if self.name == TRAIN else derive_seed(job.seed, "phase", self.name)

    def division(self, job: TrainingJob) -> Division:
        """Return how each global batch is divided. Raises UsageError if it cannot be."""
        return Division(self.recipe.batch, job.group.size, job.micro_batch)

    def logged(self, term: str) -> str:
        """Return the name of a term in the log."""
        return term if self.name == TRAIN else f"{self.name}.{term}"


def phases_of(job: TrainingJob) -> tuple[Phase, ...]:
    """Return the phases of a step, in order."""
    phases: list[Phase] = []
    for name, recipe in job.phases.items():
        loader = job.loader(name)
        before = phases[-1].before + phases[-1].iterations if phases else 0
        phases.append(Phase(name, recipe, loader, recipe.length(len(loader)), before))
    return tuple(phases)


@dataclass
class TrainingLog:
    """The losses of a training over time, and its cost. Checkpoints store the fields by these names.

    ``terms``, ``notes``: for each name a value at each of ``iterations``. Where a term is absent it adds 0 to the loss;
    a note that is absent, or no finite number, is None. ``planned``: the iterations of all phases.
    ``skipped``: see ``nonfinite.py``; it is set at the end of the training. ``compiled``, ``tf32``,
    ``cudnn_benchmark``: whether any part of the training ran so, those before an interruption included.
    """

    iterations: list[int] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, list[float | None]] = field(default_factory=dict)
    planned: int = 0
    seconds: float = 0.0  # of the iterations alone
    wall_before: float = 0.0  # all seconds of earlier, interrupted trainings of the step
    images: int = 0
    resumed: bool = False
    skipped: int = 0
    compiled: bool = False
    tf32: bool = False
    cudnn_benchmark: bool = False
    peak_host_bytes: int = 0
    peak_device_bytes: int | None = None

    def add(self, iteration: int, terms: Mapping[str, float], notes: Mapping[str, float]) -> None:
        """Log an iteration, so that every name has as many values as there are iterations."""
        for name in terms:
            self.terms.setdefault(name, [0.0] * len(self.iterations))
        for name in notes:
            self.notes.setdefault(name, [None] * len(self.iterations))
        self.iterations.append(iteration)
        for name, values in self.terms.items():
            values.append(terms.get(name, 0.0))
        for name, noted in self.notes.items():
            note = notes.get(name, math.nan)
            noted.append(note if math.isfinite(note) else None)


class StoppedError(RunError):
    """The training was asked to stop, and has saved a checkpoint."""
