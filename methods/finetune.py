"""Fine-tuning: nothing against forgetting, the lower bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cispbench.harness.method import Batch, Method, Output, StepContext
from cispbench.methods.losses import cross_entropy, labelled_pixels

if TYPE_CHECKING:
    from torch import Tensor


class FineTune(Method):
    """Plain cross-entropy on each step's data."""

    name = "finetune"

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the cross-entropy alone."""
        return {"cross_entropy": cross_entropy(output.logits, batch.target)}

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """The cross-entropy is a mean over labelled pixels."""
        return {"cross_entropy": labelled_pixels(batch.target)}
