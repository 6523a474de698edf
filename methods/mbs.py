"""MBS: Mitigating Background Shift in class-incremental semantic segmentation (Park et al., ECCV 2024).

Released code: github.com/RoadoneP/ECCV2024_MBS at dc83e50.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cispbench.harness.machine.lazy import functional, torch
from cispbench.harness.method import Batch, Method, Output, StepContext
from cispbench.methods.losses import (
    VOID,
    Probability,
    Weight,
    cross_entropy,
    each_pixel,
    labelled_pixels,
    sum_over_pixels,
)

if TYPE_CHECKING:
    from torch import Tensor

PatchMean = Literal["positive", "all"]


@dataclass(frozen=True)
class MBSOptions:
    """MBS's options; each of its parts can be switched off, which is the paper's ablation.

    ``distillation`` is lambda, the weight of the output distillation (25 on VOC, 50 on ADE20K). ``patch_mean``: what
    the weighted sum over patches is divided by, see ``adaptive_feature_distillation``.
    """

    threshold: Probability = 0.7
    distillation: Weight = 25.0
    pseudo_labels: bool = True
    patch_distillation: bool = True
    patch_mean: PatchMean = "positive"
    class_distillation: bool = True
    output_distillation: bool = True
    label_guidance: bool = True
    orthogonality: bool = True
    token_init: bool = True


def selective_pseudo_labels(target: Tensor, old_logits: Tensor, threshold: float = 0.7) -> Tensor:
    """Label background pixels where the previous model is sure of an old class; make uncertain ones void.

    ``target`` (B, H, W), ``old_logits`` (B, O, H, W). A background pixel takes the best class if that is not
    background and its probability reaches ``threshold``; else it becomes void where the old classes together are
    more probable than background. Source: MBS, section 3.2.
    """

    def labels(old_logits: Tensor, target: Tensor) -> Tensor:
        probabilities = old_logits.softmax(1)
        best, label = probabilities.max(1)
        sure = (target == 0) & (label != 0) & (best >= threshold)
        target = torch.where(sure, label, target)
        uncertain = (target == 0) & (probabilities[:, 0] < probabilities[:, 1:].sum(1))
        return target.masked_fill(uncertain, VOID)

    return each_pixel(labels, old_logits, target)


def patch_weights(old_masks: Tensor, labels: Tensor, new_classes: Sequence[int]) -> Tensor:
    """Return the weight of each patch in the feature distillation: high where it shows no new class.

    ``old_masks`` (B, O, h, w): the previous model's masks on the patch grid; ``labels`` (B, h, w): the pseudo-
    labelled target there. Returns (B, h, w): 1 on old classes, 0 on new classes and void, elsewhere the previous
    model's probability of background. Source: MBS, section 3.3.
    """
    weights = old_masks.float().softmax(1)[:, 0]
    new = _among(labels, new_classes)
    old = (labels != 0) & ~new & (labels != VOID)
    return weights.masked_fill(old, 1.0).masked_fill(new | (labels == VOID), 0.0)


def adaptive_feature_distillation(
    features: Tensor, old_features: Tensor, weights: Tensor | None = None, mean_over: PatchMean = "positive"
) -> Tensor:
    """Return the squared difference of (B, n, D) features, a mean or weighted by (B, n).

    Weighted: the sum is divided by the number of entries with a positive weight, and is 0 without such entries;
    ``mean_over="all"`` divides by the number of all entries. Source: MBS, equations 5 and 6; the positive entries:
    ECCV2024_MBS, utils/loss.py, AdaptiveFeatureDistillation.
    """
    squared = (features.float() - old_features.float()) ** 2
    if weights is None:
        return squared.mean()
    weights = weights.unsqueeze(-1)
    if mean_over == "all":
        return (weights * squared).mean()
    entries = (weights > 0).sum() * squared.shape[-1]
    return (weights * squared).sum() / entries.clamp(min=1)


def label_guided_output_distillation(logits: Tensor, old_logits: Tensor, target: Tensor) -> Tensor:
    """Return the distillation in which a pixel of a new class gives the background's probability to that class.

    ``logits`` (B, C, H, W), ``old_logits`` (B, O, H, W), ``target`` (B, H, W): ground truth of the step. The soft
    target is padded with zeros to C; on pixels of a new class that class takes the background's probability. Mean
    over pixels and C classes. Source: MBS, equation 8.
    """
    known = old_logits.shape[1]

    def cost(logits: Tensor, old_logits: Tensor, target: Tensor) -> Tensor:
        soft = old_logits.float().softmax(1)
        is_new = (target >= known) & (target != VOID)
        # -sum_c q_c (z_c - log sum exp z), term by term, so that no (n, C) of log-probabilities is kept.
        others = (soft[:, 1:] * logits[:, 1:known]).sum(1)
        channel = torch.where(is_new, target, torch.zeros_like(target)).unsqueeze(1)
        moved = soft[:, 0] * logits.gather(1, channel).squeeze(1)
        return logits.logsumexp(1) * soft.sum(1) - others - moved

    return sum_over_pixels(cost, logits, old_logits, target) / logits.numel()


def orthogonality(class_tokens: Tensor, new_classes: Sequence[int], weight: float) -> Tensor:
    """Return how similar the new classes' tokens are to all others, which training lowers.

    ``class_tokens`` (C, D) or (B, C, D); L2-normalised; similarities of the new tokens with all tokens (detached),
    their own and exact zeros left out; mean of absolute values times ``weight``. Source: MBS, equation 9.
    """
    tokens = functional.normalize(class_tokens.float(), dim=-1)
    chosen = _numbers(new_classes, tokens.device)
    similarity = tokens[..., chosen, :] @ tokens.detach().transpose(-1, -2)
    own = functional.one_hot(chosen, tokens.shape[-2]).bool()
    similarity = similarity.masked_fill(own, 0.0).abs()
    return weight * similarity.sum() / (similarity > 0).sum().clamp(min=1)


def _among(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Return where labels are among the classes; without a list on the device, whose copy would make a GPU wait."""
    if isinstance(classes, range) and classes.step == 1:
        return (labels >= classes.start) & (labels < classes.stop)
    found = torch.zeros_like(labels, dtype=torch.bool)
    for number in classes:
        found |= labels == number
    return found


def _numbers(classes: Sequence[int], device: torch.device) -> Tensor:
    if isinstance(classes, range):
        return torch.arange(classes.start, classes.stop, classes.step, device=device)
    return torch.as_tensor(list(classes), device=device)


class MBS(Method):
    """Selective pseudo-labels, adaptive feature and label-guided output distillation, orthogonal tokens."""

    name = "mbs"
    Options = MBSOptions
    options: MBSOptions

    def initialise(self, context: StepContext) -> None:
        """Copy the background's token into the new classes; gains and biases of the new group stay 1 and 0."""
        if self.options.token_init:
            background, *_, new = context.model.class_groups()
            new.start_from(background, bias=False)

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the five terms of the released code (those switched on)."""
        assert previous is not None  # the harness trains step 0
        options, target = self.options, self._pseudo_labelled(batch, previous)
        terms = {"cross_entropy": cross_entropy(output.logits, target)}
        if options.patch_distillation:
            weights = self._weights(target, previous, context)
            terms["patch_distillation"] = adaptive_feature_distillation(
                output.patches, previous.patches, weights, options.patch_mean
            )
        if options.class_distillation:
            old = output.class_features[:, : context.old_classes]
            terms["class_distillation"] = adaptive_feature_distillation(old, previous.class_features)
        if options.output_distillation:
            guide = batch.target if options.label_guidance else torch.zeros_like(batch.target)
            kept = label_guided_output_distillation(output.logits, previous.logits, guide)
            terms["output_distillation"] = options.distillation * kept
        if options.orthogonality:
            new = range(context.old_classes, context.num_classes)
            weight = context.new_classes / context.num_classes
            terms["orthogonality"] = orthogonality(output.class_tokens, new, weight)
        return terms

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """The cross-entropy is a mean over labelled pixels, the patches' distillation over those with a weight."""
        assert previous is not None
        target = self._pseudo_labelled(batch, previous)
        counts: dict[str, Tensor | int] = {"cross_entropy": labelled_pixels(target)}
        if self.options.patch_distillation and self.options.patch_mean == "positive":
            counts["patch_distillation"] = (self._weights(target, previous, context) > 0).sum()
        return counts

    def _pseudo_labelled(self, batch: Batch, previous: Output) -> Tensor:
        if not self.options.pseudo_labels:
            return batch.target
        return selective_pseudo_labels(batch.target, previous.logits, self.options.threshold)

    @staticmethod
    def _weights(target: Tensor, previous: Output, context: StepContext) -> Tensor:
        grid = previous.masks.shape[-2:]
        small = functional.interpolate(target.unsqueeze(1).float(), size=grid, mode="nearest").squeeze(1).long()
        new = range(context.old_classes, context.num_classes)
        return patch_weights(previous.masks, small, new).flatten(1)
