"""DKD: Decomposed Knowledge Distillation for Class-Incremental Semantic Segmentation (Baek et al., NeurIPS 2022).

Released code: github.com/cvlab-yonsei/DKD at fb4693f.

Every foreground class has a sigmoid of its own; there is no background class. Channel 0 holds the auxiliary
classifier instead: it learns to answer no everywhere, and new classes start from it. F = O - 1 old foreground classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from cispbench.harness.machine.lazy import functional, torch
from cispbench.methods.losses import VOID, labelled_pixels
from cispbench.methods.memory import take_turns

if TYPE_CHECKING:
    from numpy.random import RandomState
    from torch import Tensor

Id = TypeVar("Id")


def classification(
    logits: Tensor, target: Tensor, old_classes: int, positive_weight: float = 1.0, void_is_negative: bool = True
) -> Tensor:
    """Return the binary cross-entropy of the new classes: the mean over pixels, summed over classes.

    ``logits`` (B, N, H, W) of the new classes alone; channel i is class ``old_classes`` + i. Every pixel that is not
    of the class is a negative, void ones too (``void_is_negative=False`` leaves them out, and is 0 where all are
    void). Positives weigh ``positive_weight``. Source: cvlab-yonsei/DKD, models/loss.py, WBCELoss.
    """
    logits = logits.float()
    positive = (target >= old_classes) & (target < old_classes + logits.shape[1]) & (target != VOID)
    own = logits.gather(1, (target - old_classes).masked_fill(~positive, 0).unsqueeze(1)).squeeze(1)
    # All as negatives, then the positives corrected: without a one-hot (B, N, H, W).
    corrected = positive_weight * functional.softplus(-own) - functional.softplus(own)
    cost = functional.softplus(logits).sum(1) + corrected.masked_fill(~positive, 0.0)
    if void_is_negative:
        return cost.mean()
    return cost.masked_fill(target == VOID, 0.0).sum() / labelled_pixels(target).clamp(min=1)


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
    logits = logits.float()
    return (functional.softplus(logits) - old_logits.float().sigmoid() * logits).sum(1).mean()


def decomposed_logits(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positive and the negative part of the logits without biases, both (B, F, h, w).

    ``features`` (B, D, h, w), after a ReLU; ``weight`` (F, D): its positive entries give the positive part. An entry
    that is exactly 0 has no gradient. Source: DKD, section 3.2.
    """
    kernels = weight[..., None, None]
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
    candidates: Sequence[tuple[Id, Sequence[int]]], classes: Sequence[int], size: int, rng: RandomState
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
