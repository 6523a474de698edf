"""Losses that several methods share: pure functions of tensors.

Notation: B images of H x W pixels, C classes of the model being trained, O classes of the previous model (background
included), N = C - O new ones. ``target`` is int64 (B, H, W) with 0 background, O..C-1 new classes, 255 void.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from cispbench.harness.cross_entropy import cross_entropy as cross_entropy
from cispbench.harness.cross_entropy import labelled_pixels as labelled_pixels
from cispbench.harness.cross_entropy import pixel_cross_entropy as pixel_cross_entropy
from cispbench.harness.cross_entropy import pixels_in_mean as pixels_in_mean
from cispbench.harness.machine.lazy import functional, torch
from cispbench.harness.method import VOID as VOID
from cispbench.harness.method import Range
from cispbench.harness.pixel_bands import each_pixel as each_pixel
from cispbench.harness.pixel_bands import sum_over_pixels as sum_over_pixels

if TYPE_CHECKING:
    from torch import Tensor

Weight = Annotated[float, Range(least=0, most=1e6)]  # of a term of the loss
InverseTemperature = Annotated[float, Range(above=0, most=1000)]
Probability = Annotated[float, Range(least=0, most=1)]


def unbiased_cross_entropy(
    logits: Tensor, target: Tensor, old_classes: int, reduction: Literal["mean", "none"] = "mean",
    void_in_mean: bool = True,
) -> Tensor:  # fmt: skip
    """Return the cross-entropy in which p(background) is the sum of the softmax over all O old classes.

    ``logits`` (B, C, H, W), ``target`` (B, H, W); labels below ``old_classes`` count as background. Void pixels cost
    0, and count in the mean as MiB's released train.py takes it; ``void_in_mean=False`` leaves them out.
    ``reduction="none"`` returns (B, H, W). Source: MiB (Cermelli et al., CVPR 2020), equation 5.
    """
    if reduction == "none":
        rows = logits.float().movedim(1, -1).flatten(0, 2)
        return pixel_unbiased_cross_entropy(rows, target.flatten(), old_classes).view_as(target)
    cost = partial(pixel_unbiased_cross_entropy, old_classes=old_classes)
    return sum_over_pixels(cost, logits, target) / pixels_in_mean(target, void_in_mean)


def pixel_unbiased_cross_entropy(logits: Tensor, target: Tensor, old_classes: int) -> Tensor:
    """Return ``unbiased_cross_entropy`` of n pixels, (n,), from ``logits`` (n, C) and ``target`` (n,)."""
    void, background = target == VOID, target < old_classes
    of_background = logits[:, : max(old_classes, 1)].logsumexp(1)
    index = target.masked_fill(background | void, 0).unsqueeze(1)
    score = torch.where(background, of_background, logits.gather(1, index).squeeze(1))
    return (logits.logsumexp(1) - score).masked_fill(void, 0.0)


def unbiased_distillation(logits: Tensor, old_logits: Tensor, alpha: float = 1.0) -> Tensor:
    """Return MiB's distillation: the previous model's background is matched with background plus all new classes.

    ``logits`` (B, C, H, W), ``old_logits`` (B, O, H, W), multiplied by ``alpha``. Sum over old classes divided by O,
    mean over pixels. Source: MiB (Cermelli et al., CVPR 2020), equations 7 and 8.
    """
    known = old_logits.shape[1]

    def cost(logits: Tensor, old_logits: Tensor) -> Tensor:
        old, total = (old_logits.float() * alpha).softmax(1), logits.logsumexp(1)
        background = torch.cat([logits[:, :1], logits[:, known:]], 1).logsumexp(1) - total
        # The old classes' term, sum q (z - total), without keeping log-probabilities for every class.
        others = (old[:, 1:] * logits[:, 1:known]).sum(1) - old[:, 1:].sum(1) * total
        return -(old[:, 0] * background + others)

    return sum_over_pixels(cost, logits, old_logits) / (known * _pixels(logits))


def new_in_background(logits: Tensor, old_classes: int) -> Tensor:
    """Return logits (B, O, h, w) in which those of the new classes are added to the background's, from (B, C, h, w).

    Source: PLOP's release (CVPR2021_PLOP, utils/loss.py, features_distillation), and RCIL's (train.py:25-133).
    """
    background = logits[:, :1] + logits[:, old_classes:].sum(1, keepdim=True)
    return torch.cat([background, logits[:, 1:old_classes]], 1)


def distillation(logits: Tensor, old_logits: Tensor, alpha: float = 1.0) -> Tensor:
    """Return the distillation over the previous model's classes: the new channels are cut off before the log-softmax.

    ``logits`` (B, C, H, W), ``old_logits`` (B, O, H, W), multiplied by ``alpha``. Mean over pixels and old classes.
    Source: LwF as in MiB's released code (fcdl94/MiB, utils/loss.py, KnowledgeDistillationLoss).
    """
    known = old_logits.shape[1]

    def cost(logits: Tensor, old_logits: Tensor) -> Tensor:
        soft = (old_logits.float() * alpha).softmax(1)
        return -(soft * logits[:, :known].log_softmax(1)).sum(1)

    return sum_over_pixels(cost, logits, old_logits) / (known * _pixels(logits))


def bce_with_ignore(logits: Tensor, target: Tensor, void_in_mean: bool = False) -> Tensor:
    """Return the binary cross-entropy against the one-hot target: sum over classes, mean over non-void pixels.

    ``logits`` (B, C, H, W); 0 where all pixels are void; ``void_in_mean`` as in ``cross_entropy``. Source:
    fcdl94/MiB, utils/loss.py, BCEWithLogitsLossWithIgnoreIndex.
    """

    def cost(logits: Tensor, target: Tensor) -> Tensor:
        void = target == VOID
        # A class costs softplus(z) - t z: without a one-hot (n, C) this is nearly three times as fast.
        own = logits.gather(1, target.masked_fill(void, 0).unsqueeze(1)).squeeze(1)
        return (functional.softplus(logits).sum(1) - own).masked_fill(void, 0.0)

    return sum_over_pixels(cost, logits, target) / pixels_in_mean(target, void_in_mean)


def _pixels(logits: Tensor) -> int:
    return logits[:, 0].numel()
