"""ILT: Incremental Learning Techniques for semantic segmentation (Michieli and Zanuttigh, ICCVW 2019), as MiB runs it.

Released code: github.com/fcdl94/MiB at 3da2fe3, ``--method ILT``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cispbench.harness.machine.lazy import functional
from cispbench.harness.method import Batch, Output, StepContext
from cispbench.methods.losses import Weight
from cispbench.methods.lwf import LwF, LwFOptions

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ILTOptions(LwFOptions):
    """LwF's options and the weight of the distillation of the encoder's map."""

    encoder_distillation: Weight = 100.0


def encoder_distillation(encoded: Tensor, old_encoded: Tensor) -> Tensor:
    """Return the mean squared difference of two maps (B, E, h, w), over all entries (fcdl94/MiB, train.py)."""
    return functional.mse_loss(encoded.float(), old_encoded.float())


class ILT(LwF):
    """LwF that also keeps the encoder's last map where it was."""

    name = "ilt"
    Options = ILTOptions
    options: ILTOptions

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return LwF's terms and the distillation of the encoder's map."""
        assert previous is not None
        terms = super().losses(batch, output, previous, context)
        kept = encoder_distillation(output.encoded, previous.encoded)
        return {**terms, "encoder_distillation": self.options.encoder_distillation * kept}
