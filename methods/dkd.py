"""DKD: Decomposed Knowledge Distillation for Class-Incremental Semantic Segmentation (Baek et al., NeurIPS 2022).

Released code: github.com/cvlab-yonsei/DKD at fb4693f.

Every foreground class has a sigmoid of its own; there is no background class. Channel 0 holds the auxiliary
classifier instead: it learns to answer no everywhere, and new classes start from it. F = O - 1 old foreground classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np

from cispbench.harness.machine.lazy import functional, torch
from cispbench.harness.method import Batch, Exemplar, Group, Memory, Method, Output, Range, StepContext
from cispbench.harness.models.groups import AUXILIARY
from cispbench.methods.losses import VOID, Probability, Weight, labelled_pixels, pixels_in_mean, sum_over_pixels
from cispbench.methods.memory import list_candidates, presence, take_turns
from cispbench.splits.settings import Setting

if TYPE_CHECKING:
    from torch import Tensor

Id = TypeVar("Id")


@dataclass(frozen=True)
class DKDOptions:
    """DKD's options; each of its parts can be switched off, which is the paper's ablation.

    ``base_positive_weight`` and ``positive_weight``: how much more a pixel of a class weighs than one that is not, in
    step 0 and later. ``distillation``, ``decomposed``, ``auxiliary``: weights of the terms. ``auxiliary_init``: new
    classes start from the auxiliary classifier. ``void_is_negative``: see ``classification``.
    """

    base_positive_weight: Weight = 2.0
    positive_weight: Weight = 1.0
    distillation: Weight = 5.0
    decomposed: Weight = 5.0
    auxiliary: Weight = 1.0
    auxiliary_init: bool = True
    void_is_negative: bool = True


@dataclass(frozen=True)
class DKDMOptions(DKDOptions):
    """DKD-M's options: ``memory`` is the number of images that are kept.

    ``threshold``: the probability from which on the previous network says what an image shows. The released code looks
    at augmented crops of the images then (``selection_on_crops``), so that a class outside the crop is missed.
    """

    memory: Annotated[int, Range(least=1, most=1_000_000)] = 100
    threshold: Probability = 0.9
    selection_on_crops: bool = True


def classification(
    logits: Tensor, target: Tensor, old_classes: int, positive_weight: float = 1.0, void_is_negative: bool = True
) -> Tensor:
    """Return the binary cross-entropy of the new classes: the mean over pixels, summed over classes.

    ``logits`` (B, N, H, W) of the new classes alone; channel i is class ``old_classes`` + i. Every pixel that is not
    of the class is a negative, void ones too (``void_is_negative=False`` leaves them out, and is 0 where all are
    void). Positives weigh ``positive_weight``. Source: cvlab-yonsei/DKD, models/loss.py, WBCELoss.
    """

    def cost(logits: Tensor, target: Tensor) -> Tensor:
        void = target == VOID
        positive = (target >= old_classes) & (target < old_classes + logits.shape[1]) & ~void
        own = logits.gather(1, (target - old_classes).masked_fill(~positive, 0).unsqueeze(1)).squeeze(1)
        # All as negatives, then the positives corrected: without a one-hot (n, N).
        corrected = positive_weight * functional.softplus(-own) - functional.softplus(own)
        loss = functional.softplus(logits).sum(1) + corrected.masked_fill(~positive, 0.0)
        return loss if void_is_negative else loss.masked_fill(void, 0.0)

    return sum_over_pixels(cost, logits, target) / pixels_in_mean(target, void_is_negative)


def memory_classification(logits: Tensor, target: Tensor, positive_weight: float) -> Tensor:
    """Return ``classification`` over all classes seen so far: ``logits`` (B, F, H, W), channel i is class i + 1.

    Source: jihwankwak/CISS_partitioned at 7353b46, models/loss.py.
    """
    return classification(logits, target, 1, positive_weight)


def distillation(logits: Tensor, old_logits: Tensor) -> Tensor:
    """Return the binary cross-entropy against the sigmoid of ``old_logits``: mean over pixels, summed over classes.

    Both (B, F, h, w): foreground classes that the previous model knows. Source: cvlab-yonsei/DKD, models/loss.py,
    KDLoss.
    """

    def cost(logits: Tensor, old_logits: Tensor) -> Tensor:
        return (functional.softplus(logits) - old_logits.float().sigmoid() * logits).sum(1)

    # Detached: a target, whoever computed it, is not learnt.
    return sum_over_pixels(cost, logits, old_logits.detach()) / logits[:, 0].numel()


def decomposed_logits(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positive and the negative part of the logits without biases, both (B, F, h, w).

    ``features`` (B, D, h, w), after a ReLU; ``weight`` (F, D): its positive entries give the positive part. An entry
    that is exactly 0 has no gradient. Source: DKD, section 3.2.
    """
    features, kernels = features.float(), weight.float()[..., None, None]
    positive, negative = functional.relu(kernels), -functional.relu(-kernels)
    return functional.conv2d(features, positive), functional.conv2d(features, negative)


def decomposed_distillation(
    features: Tensor, weight: Tensor, old_features: Tensor, old_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the distillation of the positive and of the negative part of the old classes' logits.

    ``features``, ``old_features`` (B, D, h, w); ``weight`` (F + N, D), whose first F rows meet ``old_weight`` (F, D).
    Source: DKD, section 3.2; cvlab-yonsei/DKD, trainer/trainer_voc.py.
    """
    new = decomposed_logits(features, weight[: old_weight.shape[0]])
    old = decomposed_logits(old_features, old_weight)
    return distillation(new[0], old[0]), distillation(new[1], old[1])


def auxiliary(logits: Tensor) -> Tensor:
    """Return the auxiliary classifier's loss: its ``logits`` (B, 1, H, W) against 0 at every pixel, void ones too.

    Source: cvlab-yonsei/DKD, models/loss.py, ACLoss.
    """
    return functional.softplus(logits.float()).mean()


def class_scores(logits: Tensor) -> Tensor:
    """Return scores (B, 1 + F, H, W) of foreground ``logits`` (B, F, H, W): background's is 0.5 everywhere.

    A class is predicted where its probability exceeds 0.5, in float32. Source: cvlab-yonsei/DKD,
    trainer/trainer_voc.py, validation.
    """
    probabilities = logits.float().sigmoid()
    return torch.cat([torch.full_like(probabilities[:, :1], 0.5), probabilities], 1)


def sigmoid_prediction(logits: Tensor) -> Tensor:
    """Return the predicted classes (B, H, W), 0 background, from foreground ``logits`` (B, F, H, W)."""
    return class_scores(logits).argmax(1)


def candidate_labels(target: Tensor, old_logits: Tensor, threshold: float = 0.9) -> Tensor:
    """Label background pixels where the previous model is sure of a class, to know what a candidate shows.

    ``target`` (n, H, W); ``old_logits`` (n, F, H, W), the auxiliary left out. A background pixel takes the class of
    the largest sigmoid if that reaches ``threshold``. Source: cvlab-yonsei/DKD, utils/memory.py.
    """
    probability, label = old_logits.float().sigmoid().max(1)
    return torch.where((target == 0) & (probability >= threshold), label + 1, target)


def balanced_memory(
    candidates: Sequence[tuple[Id, Sequence[int]]], classes: Sequence[int], size: int, rng: np.random.RandomState
) -> list[tuple[Id, Sequence[int]]]:
    """Choose up to ``size`` candidates, pairs (id, labels), that show all ``classes`` about equally often.

    ``rng`` shuffles the candidates, then the classes, both as copies. Returns the pairs grouped by class, in
    ascending order. See ``take_turns``.
    """
    order, turns = list(range(len(candidates))), list(classes)
    rng.shuffle(order)
    rng.shuffle(turns)
    tried = [candidates[place] for place in order]
    return [tried[place] for place in take_turns([labels for _, labels in tried], turns, size)]


class DKD(Method):
    """A sigmoid for each class, distilled as a whole and in its positive and negative part.

    What keeps its statistics, and which classifiers decay, is in the recipe.
    """

    name = "dkd"
    shared_base = False
    needs = frozenset({"linear"})
    Options = DKDOptions
    options: DKDOptions

    def layout(self, setting: Setting, step: int) -> tuple[Group, ...]:
        """Return the classifiers: in step 0 the auxiliary, in background's place, then one for each step's classes.

        The network detaches the map that an auxiliary one reads, so that its loss trains its own parameters alone.
        """
        if step > 0:
            return (Group(setting.new_classes(step)),)
        return Group(1, role=AUXILIARY), Group(setting.new_classes(0) - 1)

    def initialise(self, context: StepContext) -> None:
        """Start the new classes from the auxiliary classifier."""
        if context.step > 0 and self.options.auxiliary_init:
            first, *_, new = context.model.class_groups()
            new.start_from(first)

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the classification of the new classes, the auxiliary's term and, from step 1 on, the distillations."""
        options, first = self.options, max(context.old_classes, 1)
        weight = options.base_positive_weight if previous is None else options.positive_weight
        terms = {
            "classification": classification(
                output.logits[:, first:], batch.target, first, weight, options.void_is_negative
            ),
            "auxiliary": options.auxiliary * auxiliary(output.logits[:, :1]),
        }
        if previous is not None:
            kept = distillation(output.logits[:, 1:first], previous.logits[:, 1:])
            positive, negative = decomposed_distillation(
                output.stages[-1], output.class_tokens[1:], previous.stages[-1], previous.class_tokens[1:]
            )
            terms["distillation"] = options.distillation * kept
            terms["positive"] = options.decomposed * positive
            terms["negative"] = options.decomposed * negative
        return terms

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """All terms are means over all pixels, unless void is left out of the classification."""
        return {} if self.options.void_is_negative else {"classification": labelled_pixels(batch.target)}

    def scores(self, output: Output) -> Tensor:
        """Return the classes' probabilities, and 0.5 for background; the auxiliary is not read."""
        return class_scores(output.logits[:, 1:])


class DKDM(DKD):
    """DKD with a memory: images of earlier steps join each step's own, labelled as these are."""

    name = "dkd_m"
    Options = DKDMOptions
    options: DKDMOptions

    def memory(self) -> Memory:
        """Return how exemplars are used: like further images of the step, whose old classes are not labelled."""
        crops = self.options.selection_on_crops
        return Memory(self.options.memory, "append", labels="step", view="train" if crops else "centre")

    def select_exemplars(
        self, images: Iterable[Batch], kept: Sequence[Exemplar], context: StepContext
    ) -> list[Exemplar]:
        """Choose so that all old classes are shown; what was kept keeps the classes that were noted then."""
        candidates = list_candidates(kept, images, lambda batch: self._shown(batch, context), context.step - 1)
        pairs = [(candidate, candidate.classes) for candidate in candidates]
        # The run's own random numbers, as the harness has seeded them.
        rng = np.random.RandomState(np.random.randint(2**31))
        chosen = balanced_memory(pairs, range(1, context.old_classes), self.options.memory, rng)
        return [exemplar for exemplar, _ in chosen]

    def _shown(self, batch: Batch, context: StepContext) -> Tensor:
        target = batch.target
        if context.step > 1 and context.previous is not None:
            old_logits = context.previous(*batch.inputs).logits[:, 1:]
            target = candidate_labels(target, old_logits, self.options.threshold)
        return presence(target, context.old_classes, background=0)
