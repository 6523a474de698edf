"""Fine-tuning: nothing against forgetting, the lower bound."""

from __future__ import annotations

from torch import Tensor

from cispbench.harness.method import Batch, Method, Output, StepContext
from cispbench.methods.losses import cross_entropy


class FineTune(Method):
    """Plain cross-entropy on each step's data."""

    name = "finetune"

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the cross-entropy alone."""
        return {"cross_entropy": cross_entropy(output.logits, batch.target)}
