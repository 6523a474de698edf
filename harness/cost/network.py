"""What a step costs a network: operations of an image, and the memory of a device, by the recipe of a phase."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from cispbench.harness.cost.counting import META, PassCount, Trunk, count_head, count_trunk
from cispbench.harness.cost.flops import Flops
from cispbench.harness.models.catalogue import build_model, least_images
from cispbench.harness.models.groups import Group
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.step import StepContext
from cispbench.harness.training.optimisation import build_optimizer
from cispbench.harness.training.trunk import shares_trunk
from cispbench.splits.errors import CispbenchError, RunError, describe_error
from cispbench.splits.settings import Setting

WORD = 4  # bytes of a weight, a gradient, or a value of the loss: float32
# Maps of the size of the images, for each channel, that are held when the last loss term is computed: the logits, and
# their gradient, which each of two terms keeps for the backward pass, a cross-entropy and a distillation. They work in
# bands and keep nothing else of that size (``pixel_bands.py``).
LOSS_MAPS = 3

Layouts = tuple[tuple[Group, ...], ...]  # the groups that each step adds, from step 0 on


@dataclass(frozen=True)
class MemoryNeed:
    """The bytes of a training: ``fixed`` whatever the batch is, and those of each ``image`` that is held at once."""

    fixed: float
    image: float

    def bytes(self, images: int) -> float:
        """Return what a device needs that holds so many images."""
        return self.fixed + self.image * images


@dataclass(frozen=True)
class TrainingCount:
    """One image of a training, with the previous network's pass; and the memory of a device."""

    flops: Flops
    memory: MemoryNeed


@contextmanager
def counting(name: str) -> Iterator[None]:
    """Raise RunError, naming the network, for whatever its code raises: it is anybody's, and may look at values."""
    try:
        yield
    except CispbenchError:
        raise
    except Exception as error:
        raise RunError(
            f"the network {name} cannot be counted on tensors without data: {describe_error(error)}.",
            hint="Plan it without --on.",
        ) from error


def on_meta(network: IncrementalModel) -> IncrementalModel:
    """Return a copy of a network without data."""
    return copy.deepcopy(network).to(META)


class NetworkCounts:
    """The counts of one network, as steps let it grow; nothing is counted twice."""

    def __init__(self, model: str, crop: int, freeze_batch_norm: bool) -> None:
        self._crop, self._batch = crop, least_images(model)
        self._name = model
        with torch.random.fork_rng(devices=[]):
            # With weights, unlike its copies: whether a trunk is shared is asked of real ones.
            self._real = build_model(model, crop)
        self._real.freeze_batch_norm = freeze_batch_norm
        with counting(model):
            self._networks: dict[Layouts, IncrementalModel] = {(): on_meta(self._real)}
        self._trunks: dict[tuple[object, ...], Trunk] = {}
        self._heads: dict[tuple[object, ...], PassCount] = {}
        self._forwards: dict[tuple[object, ...], Flops] = {}
        self._trainings: dict[tuple[object, ...], TrainingCount] = {}

    def forward(self, layouts: Layouts, size: tuple[int, int] | None = None) -> Flops:
        """Return the operations of a pass without gradients over an image of ``size`` (None: that of the training)."""
        key = (layouts, size or (self._crop, self._crop))
        if key not in self._forwards:
            with counting(self._name):
                self._passes(copy.deepcopy(self._grown(layouts)).requires_grad_(False), layouts, key[1], "fp32", ())
        return self._forwards[key]

    def training(
        self, setting: Setting, step: int, layouts: Layouts, phase: OptimRecipe, previous: int
    ) -> TrainingCount:
        """Return the cost of an image in a phase of ``step``.

        ``layouts``: up to this step. ``previous``: how many passes of the previous network an image needs. Raises
        RunError for a network that cannot be counted.
        """
        key = (layouts, step, setting.old_classes(step), setting.num_classes(0), _what_counts(phase), previous)
        if key not in self._trainings:  # other seeds have the same
            with counting(self._name):
                self._trainings[key] = self._training(setting, step, layouts, phase, previous)
        return self._trainings[key]

    def _training(
        self, setting: Setting, step: int, layouts: Layouts, phase: OptimRecipe, previous: int
    ) -> TrainingCount:
        model, before = copy.deepcopy(self._grown(layouts)), self._grown(layouts[:-1]) if step else None
        context = StepContext(setting, step, setting.old_classes(step), setting.new_classes(step), model, before)
        optimizer = build_optimizer(context, phase, META)
        learnt = {id(one) for group in optimizer.param_groups for one in group["params"]}
        model.train()
        frozen = tuple(name for name, one in model.named_parameters() if id(one) not in learnt)
        trunk, head = self._passes(model, layouts, (self._crop, self._crop), phase.precision, frozen)
        flops = trunk.forward + trunk.backward + head.forward + head.backward
        if previous and before is not None:
            flops += self.forward(layouts[:-1]) * previous
            if self._shares_trunk(context, frozen):
                flops += trunk.forward * -1
        maps = LOSS_MAPS * _channels(layouts) + (_channels(layouts[:-1]) if previous else 0)
        image = trunk.saved + head.saved + WORD * maps * self._crop**2
        return TrainingCount(flops, MemoryNeed(_fixed_bytes(context, phase, learnt, held=bool(previous)), image))

    def _grown(self, layouts: Layouts) -> IncrementalModel:
        """Return the network without data, grown by the groups of ``layouts``; it must stay as it is."""
        if layouts not in self._networks:
            network = copy.deepcopy(self._grown(layouts[:-1]))
            with META:
                network.grow(layouts[-1])
            self._networks[layouts] = network
        return self._networks[layouts]

    def _passes(
        self, network: IncrementalModel, layouts: Layouts, size: tuple[int, int], precision: str,
        frozen: Sequence[str],
    ) -> tuple[PassCount, PassCount]:  # fmt: skip
        learns = any(one.requires_grad for one in network.parameters())
        key = (size, precision, learns)
        of_trunk = (*key, tuple(name for name in frozen if name in self._trunk_names))
        of_head = (*key, tuple(frozen), layouts)
        if of_trunk not in self._trunks:
            self._trunks[of_trunk] = count_trunk(network, size, self._batch, precision)
        if of_head not in self._heads:
            self._heads[of_head] = count_head(network, self._trunks[of_trunk], precision)
        trunk, head = self._trunks[of_trunk].count, self._heads[of_head]
        self._forwards[layouts, size] = trunk.forward + head.forward
        return trunk, head

    @cached_property
    def _trunk_names(self) -> frozenset[str]:
        ids = {id(one) for part in self._real.trunk() for one in part.parameters()}
        return frozenset(name for name, one in self._real.named_parameters() if id(one) in ids)

    def _shares_trunk(self, context: StepContext, frozen: Sequence[str]) -> bool:
        real = self._real
        real.freeze([], context.model.frozen_modules)
        real.train()
        learnt = {id(one) for name, one in real.named_parameters() if name not in frozen}
        # The two trunks are equal before the step: the model starts as a copy of the previous network.
        return shares_trunk(
            StepContext(context.setting, context.step, context.old_classes, context.new_classes, real, real), learnt
        )


def _what_counts(phase: OptimRecipe) -> tuple[object, ...]:
    """Return what two recipes have in common if their trainings cost the same."""
    still = tuple(sorted(name for name, rate in phase.rates.items() if rate == 0))
    learnt = tuple(sorted(name for name, rate in phase.rates.items() if rate != 0))  # may overrule a wider selector
    frozen = (still, learnt, phase.frozen_norms, phase.frozen_dropout)
    return phase.optimizer, phase.momentum > 0, phase.precision, *frozen


def _channels(layouts: Layouts) -> int:
    return sum(group.channels for groups in layouts for group in groups)


def _fixed_bytes(context: StepContext, phase: OptimRecipe, learnt: set[int], *, held: bool) -> float:
    """Return the bytes of the networks, of the gradients and of what the optimiser keeps."""
    half = WORD / 2 if phase.precision != "fp32" else 0  # autocast keeps the weights in half precision, too
    numbers = sum(one.numel() for one in context.model.parameters())
    updated = sum(one.numel() for one in context.model.parameters() if id(one) in learnt)
    kept = 2 if phase.optimizer == "adamw" else int(phase.momentum > 0)
    found = numbers * (WORD + half) + updated * WORD * (1 + kept)
    if held and context.previous is not None:
        found += sum(one.numel() for one in context.previous.parameters()) * (WORD + half)
    return found
