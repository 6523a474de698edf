"""MiB: Modeling the Background (Cermelli et al., CVPR 2020; released code github.com/fcdl94/MiB at 1c58983)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cispbench.harness.machine.lazy import torch
from cispbench.harness.method import Batch, Method, Output, StepContext
from cispbench.methods.losses import (
    InverseTemperature,
    Weight,
    labelled_pixels,
    unbiased_cross_entropy,
    unbiased_distillation,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cispbench.harness.models.interface import IncrementalModel


@dataclass(frozen=True)
class MiBOptions:
    """MiB's options; ``alpha``, an inverse temperature, multiplies the previous model's logits.

    ``void_in_mean``: void pixels, which cost 0, count in the mean of the cross-entropy. ``balanced_init``: new
    classifiers start from the background's. ``lower_background``: the background's bias is then lowered as well.
    """

    distillation: Weight = 10.0
    alpha: InverseTemperature = 1.0
    void_in_mean: bool = True
    balanced_init: bool = True
    lower_background: bool = True


def balanced_init(old_weight: Tensor, old_bias: Tensor, new_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return new classifiers that start from the background's and share its probability evenly with it.

    ``old_weight`` (O, ...), ``old_bias`` (O,). Returns new weights (N, ...), new biases (N,) and the old biases
    with the background's own lowered by log(N + 1). Source: MiB, section 3.3; fcdl94/MiB, segmentation_module.py.
    """
    bias = old_bias[0] - math.log(new_classes + 1)
    new_weight = old_weight[:1].expand(new_classes, *old_weight.shape[1:]).clone()
    old_bias_after = old_bias.clone()
    old_bias_after[0] = bias
    return new_weight, bias.expand(new_classes).clone(), old_bias_after


def start_from_background(model: IncrementalModel, lower_background: bool = True) -> None:
    """Apply ``balanced_init`` to the classes added last; ``lower_background=False`` keeps the background's bias."""
    *old, new = model.class_groups()
    weight, bias, old_bias = balanced_init(old[0].rows, old[0].bias, new.bias.numel())
    with torch.no_grad():
        new.start_layers_from(old[0])
        new.rows.copy_(weight)
        new.bias.copy_(bias)
        if lower_background:
            old[0].bias.copy_(old_bias)


class MiB(Method):
    """Unbiased cross-entropy, unbiased distillation, and classifiers that start from the background's."""

    name = "mib"
    Options = MiBOptions
    options: MiBOptions

    def initialise(self, context: StepContext) -> None:
        """Start the new classes from the background."""
        if self.options.balanced_init:
            start_from_background(context.model, self.options.lower_background)

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the unbiased cross-entropy and the distillation."""
        assert previous is not None  # the harness trains step 0
        cost = unbiased_cross_entropy(
            output.logits, batch.target, context.old_classes, void_in_mean=self.options.void_in_mean
        )
        kept = unbiased_distillation(output.logits, previous.logits, self.options.alpha)
        return {"cross_entropy": cost, "distillation": self.options.distillation * kept}

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """The cross-entropy is a mean over labelled pixels, unless void counts in it."""
        return {} if self.options.void_in_mean else {"cross_entropy": labelled_pixels(batch.target)}
