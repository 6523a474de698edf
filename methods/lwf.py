"""LwF: Learning without Forgetting (Li and Hoiem, ECCV 2016), as MiB runs it for segmentation.

Released code: github.com/fcdl94/MiB at 3da2fe3, ``--method LWF``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cispbench.harness.method import Batch, Method, Output, StepContext
from cispbench.methods.losses import InverseTemperature, Weight, cross_entropy, distillation, labelled_pixels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LwFOptions:
    """LwF's options: the weight of the distillation, and ``alpha``, its inverse temperature.

    ``void_in_mean``: void pixels, which cost 0, count in the mean of the cross-entropy.
    """

    distillation: Weight = 100.0
    alpha: InverseTemperature = 1.0
    void_in_mean: bool = True


class LwF(Method):
    """Plain cross-entropy, whose background swallows the old classes, and distillation over the old classes."""

    name = "lwf"
    Options = LwFOptions
    options: LwFOptions

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the cross-entropy over all classes and the distillation."""
        assert previous is not None  # the harness trains step 0
        options = self.options
        kept = distillation(output.logits, previous.logits, options.alpha)
        return {
            "cross_entropy": cross_entropy(output.logits, batch.target, options.void_in_mean),
            "distillation": options.distillation * kept,
        }

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """The cross-entropy is a mean over labelled pixels, unless void counts in it."""
        return {} if self.options.void_in_mean else {"cross_entropy": labelled_pixels(batch.target)}
