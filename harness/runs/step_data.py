"""The training images of a plan's steps: their loaders, with exemplars and companions, and passes over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cispbench.harness.data.exemplars import exemplar_set
from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.data.passes import Passes, centre_view
from cispbench.harness.data.source import Source
from cispbench.harness.machine.seeds import derive_seed
from cispbench.harness.method import Exemplar, Memory
from cispbench.harness.runs.inputs import planned_maps
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import PlannedStep, RunPlan
from cispbench.harness.step import TRAIN

CACHE_BYTES = 2 * 1024**3  # decoded images are kept in memory up to this size


@dataclass(frozen=True)
class StepData:
    """The data of a run's steps, as its plan and its options want them loaded."""

    plan: RunPlan
    source: Source
    options: RunOptions

    def loader(
        self, planned: PlannedStep, batch: int, exemplars: Sequence[Exemplar], *, reader: PlannedStep | None = None,
        phase: str = TRAIN,
    ) -> TrainLoader:  # fmt: skip
        """Return the loader of a step's images. ``reader``: the step that reads them, if it is a later one.

        Each phase draws an order and an augmentation of its own.
        """
        learnt, step, reader = self.plan.learnt, planned.step, reader or planned
        maps, memory = planned_maps(self.plan, reader, self.source), self.memory_at(reader.step)
        stream = ("data", step) if phase == TRAIN else ("data", step, phase)
        return TrainLoader(
            self.source,
            planned.images,
            learnt.label_table(step),
            self.plan.recipe.data,
            batch,
            seed=derive_seed(self.plan.seed, *stream),
            workers=self.options.workers,
            cache=self._fits_in_memory(planned.images[0], len(planned.images) + len(exemplars), len(maps)),
            pin_memory=self.options.device.type == "cuda",
            device=self.options.device,
            exemplars=None if memory is None else exemplar_set(memory, exemplars, learnt, step),
            companions=maps,
        )

    def passes(self, loader: TrainLoader) -> Passes:
        """Return what makes passes over the images of a loader."""
        return Passes(loader, centre_view(self.plan.recipe.data), self.options.device)

    def memory_at(self, step: int) -> Memory | None:
        """Return the memory of the method that trains a step, None without any."""
        return self.plan.method.memory if self.plan.method.trains(step) else None

    def _fits_in_memory(self, first: str, images: int, companions: int) -> bool:
        if self.options.workers:
            return False
        image, mask = self.source.read("train", first)
        return images * (image.numel() + (1 + companions) * mask.numel()) * 1.3 < CACHE_BYTES
