"""The method of step 0 where methods share their base: the harness trains it, and no method is asked."""

from __future__ import annotations

from torch import Tensor

from cispbench.harness.cross_entropy import cross_entropy, labelled_pixels
from cispbench.harness.method import Batch, Method, Output, StepContext


class SharedBase(Method):
    """Plain cross-entropy: the mean over the pixels that are not void."""

    name = "shared base"
    reads_previous = False

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the cross-entropy alone."""
        return {"cross_entropy": cross_entropy(output.logits, batch.target)}

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """Count the labelled pixels."""
        return {"cross_entropy": labelled_pixels(batch.target)}
