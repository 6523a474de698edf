"""What the steps of a plan cost: operations, and the memory of a device. Methods' own losses come on top.

Counted are the network, forward and backward without what is frozen, the pass of the previous network where the method
reads it, and the tests. What a method adds to a batch (``Method.prepare``) and the passes of its hooks are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cispbench.harness.cost.flops import Work
from cispbench.harness.cost.network import Layouts, MemoryNeed, NetworkCounts
from cispbench.harness.distributed.division import Division
from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import least_images
from cispbench.harness.recipes.fields import EvaluationRecipe, OptimRecipe
from cispbench.harness.registry import load_method, make_method
from cispbench.harness.runs.plan import RunPlan, step_iterations
from cispbench.harness.wrapper import overrides

_ASPECT = 4 / 3  # width / height that is assumed of test images that are not cropped


class Training(NamedTuple):
    """A step that has to be trained, as a run plans it."""

    plan: RunPlan
    step: int

    @property
    def phases(self) -> list[OptimRecipe]:
        """The recipes of its phases."""
        return [self.plan.recipe.phase(self.step, name) for name in self.plan.planned(self.step).phases]

    @property
    def images(self) -> int:
        """How many images the training goes through, each as often as it comes up."""
        return sum(self.images_of(phase) for phase in self.phases)

    def images_of(self, phase: OptimRecipe) -> int:
        """Return the same of one phase."""
        return step_iterations(phase, self.plan.epoch_images(self.step)) * phase.batch


@dataclass(frozen=True)
class PhaseCost:
    """A phase of a training: its work, and the memory of a device that holds ``held`` images of a ``batch`` at once."""

    work: Work
    memory: MemoryNeed
    held: int
    batch: int

    @property
    def bytes(self) -> float:
        """The memory of a device."""
        return self.memory.bytes(self.held)


class StepCosts:
    """The costs of steps; networks and passes that many steps have in common are counted once."""

    def __init__(self) -> None:
        self._networks: dict[tuple[str, int, bool], NetworkCounts] = {}

    def training(self, training: Training) -> list[PhaseCost]:
        """Return the cost of each phase. Raises RunError for a network that cannot be counted."""
        plan, step = training.plan, training.step
        method = make_method(load_method(plan.method.name), plan.recipe.method)
        costs = []
        for phase in training.phases:
            division = Division(phase.batch, plan.devices, plan.micro_batch)
            passes = _previous_passes(method, division) if step else 0
            network = self._network(plan)
            count = network.training(plan.learnt, step, _layouts(method, plan, step), phase, passes)
            flops = count.flops * training.images_of(phase)
            held = max(size for rank in range(plan.devices) for size in division.sizes(rank))
            work = Work(plan.recipe.model, plan.recipe.data.crop, phase.precision, flops)
            costs.append(PhaseCost(work, count.memory, held, phase.batch))
        return costs

    def tests(self, plan: RunPlan, step: int) -> Work:
        """Return the work of testing a step once. Raises RunError for a network that cannot be counted."""
        recipe = plan.recipe
        method = make_method(load_method(plan.method.name), recipe.method)
        size = evaluated_size(recipe.evaluation, recipe.data.crop)
        flops = self._network(plan).forward(_layouts(method, plan, step), size) * plan.test_images
        return Work(recipe.model, recipe.data.crop, recipe.optim.precision, flops)

    def _network(self, plan: RunPlan) -> NetworkCounts:
        recipe = plan.recipe
        key = (recipe.model, recipe.data.crop, recipe.freeze_batch_norm)
        if key not in self._networks:
            self._networks[key] = NetworkCounts(*key)
        return self._networks[key]


def evaluated_size(evaluation: EvaluationRecipe, crop: int) -> tuple[int, int]:
    """Return (height, width) of what a test sees: its crop, a photo of its shorter side, else the training's crop."""
    if evaluation.crop is not None:
        return evaluation.crop, evaluation.crop
    if evaluation.resize_short is not None:
        return evaluation.resize_short, round(evaluation.resize_short * _ASPECT)
    return crop, crop


def smaller_shares(plan: RunPlan, cost: PhaseCost, memory: float) -> tuple[int | None, int | None]:
    """Return the largest micro-batch, and the fewest devices, with which a phase needs at most ``memory`` bytes.

    None where the method refuses to be divided, or where no division is small enough.
    """
    method = make_method(load_method(plan.method.name), plan.recipe.method)
    least = least_images(plan.recipe.model)
    fits = [images for images in range(least, cost.held) if cost.memory.bytes(images) <= memory]
    micro_batch = max(fits, default=None) if method.micro_batches else None
    shares = (-(-cost.batch // devices) for devices in range(1, cost.batch + 1))
    enough = (number for number, share in enumerate(shares, start=1) if share in fits)
    return micro_batch, next(enough, None) if method.devices else None


def _previous_passes(method: Method, division: Division) -> int:
    """Return how often the previous network sees an image: twice, if the micro-batches are counted beforehand."""
    if not method.reads_previous:
        return 0
    return 2 if division.micro_batches > 1 and overrides(method, "counts") else 1


def _layouts(method: Method, plan: RunPlan, step: int) -> Layouts:
    return tuple(tuple(method.layout(plan.learnt, earlier)) for earlier in range(step + 1))
