"""LwF-MC: LwF with one binary classifier a class (iCaRL without exemplars; Rebuffi et al., CVPR 2017), as MiB runs it.

Released code: github.com/fcdl94/MiB at 3da2fe3, ``--method LWF-MC`` (the combined form; ``--icarl_disjoint`` is the
other).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cispbench.harness.machine.lazy import functional
from cispbench.harness.method import Batch, Method, Output, StepContext
from cispbench.methods.losses import VOID, Weight, bce_with_ignore, labelled_pixels, pixels_in_mean, sum_over_pixels

if TYPE_CHECKING:
    from torch import Tensor

Form = Literal["combined", "disjoint"]


@dataclass(frozen=True)
class LwFMCOptions:
    """LwF-MC's options: which form, the combined form's weight of the distillation, and how void enters the mean.

    ``combined``: labels teach all classes, the previous model teaches the old ones once more. ``disjoint``: labels
    teach the new classes alone, the previous model the old ones, background included. ``void_in_mean``: void pixels
    count in the mean over pixels; False leaves them out of what labels teach (combined) or out of all (disjoint).
    """

    form: Form = "combined"
    distillation: Weight = 10.0
    void_in_mean: bool = True


def lwf_mc_loss(logits: Tensor, target: Tensor, old_logits: Tensor, void_in_mean: bool = True) -> Tensor:
    """Return the binary cross-entropy whose targets are sigmoid(z') for old classes and labels for new ones.

    ``logits`` (B, C, H, W), ``target`` (B, H, W), ``old_logits`` (B, O, H, W). Summed over classes, mean over
    pixels. The previous model is the target of background and of every old class whatever the label says; a void
    pixel is no new class and is distilled like any other, as released (``void_in_mean=False`` leaves void out).
    Source: iCaRL, algorithm 3; fcdl94/MiB, utils/loss.py, IcarlLoss.
    """
    known = old_logits.shape[1]

    def cost(logits: Tensor, old_logits: Tensor, target: Tensor) -> Tensor:
        soft, void = old_logits.float().sigmoid(), target == VOID
        is_new = (target >= known) & ~void
        own = logits.gather(1, target.masked_fill(~is_new, 0).unsqueeze(1)).squeeze(1).masked_fill(~is_new, 0.0)
        # A class costs softplus(z) - t z.
        loss = functional.softplus(logits).sum(1) - (soft * logits[:, :known]).sum(1) - own
        return loss if void_in_mean else loss.masked_fill(void, 0.0)

    return sum_over_pixels(cost, logits, old_logits, target) / pixels_in_mean(target, void_in_mean)


def binary_distillation(logits: Tensor, old_logits: Tensor) -> Tensor:
    """Return the binary cross-entropy of the old classes against sigmoid(z'): sum over classes, mean over pixels.

    ``logits`` (B, C, H, W), of which the first O channels count; ``old_logits`` (B, O, H, W). Source: fcdl94/MiB,
    train.py, the combined form (O times the mean over all entries).
    """
    known = old_logits.shape[1]

    def cost(logits: Tensor, old_logits: Tensor) -> Tensor:
        old = logits[:, :known]
        return (functional.softplus(old) - old_logits.float().sigmoid() * old).sum(1)

    return sum_over_pixels(cost, logits, old_logits) / logits[:, 0].numel()


class LwFMC(Method):
    """Binary cross-entropy at every step and distillation of the old classes one by one."""

    name = "lwf_mc"
    shared_base = False  # step 0 trains with binary cross-entropy, too
    Options = LwFMCOptions
    options: LwFMCOptions

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the binary cross-entropy and, from step 1 on, the distillation (one term in the disjoint form)."""
        options = self.options
        if previous is not None and options.form == "disjoint":
            joined = lwf_mc_loss(output.logits, batch.target, previous.logits, options.void_in_mean)
            return {"binary_cross_entropy": joined}
        terms = {"binary_cross_entropy": bce_with_ignore(output.logits, batch.target, options.void_in_mean)}
        if previous is not None:
            kept = binary_distillation(output.logits, previous.logits)
            terms["distillation"] = options.distillation * kept
        return terms

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """What labels teach is a mean over labelled pixels, unless void counts in it."""
        return {} if self.options.void_in_mean else {"binary_cross_entropy": labelled_pixels(batch.target)}
