"""EWC: Elastic Weight Consolidation (Kirkpatrick et al., PNAS 2017), as MiB's release runs it for segmentation.

Released code: github.com/fcdl94/MiB at 1c58983, ``--method EWC``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cispbench.harness.machine.lazy import torch
from cispbench.harness.method import StepContext
from cispbench.methods.importance import ImportanceMethod, ImportanceOptions, update_fisher
from cispbench.methods.losses import Probability

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EWCOptions(ImportanceOptions):
    """EWC's options. ``alpha`` weighs the new squared gradient, or (``decay_on: old``) what was there before."""

    alpha: Probability = 0.9
    decay_on: Literal["new", "old"] = "new"


class EWC(ImportanceMethod):
    """A parameter is important if the loss has large gradients in it: the diagonal of the Fisher matrix."""

    name = "ewc"
    Options = EWCOptions
    options: EWCOptions
    weighs: ClassVar[tuple[str, ...]] = ("fisher",)

    def initialise(self, context: StepContext) -> None:
        """Fix the penalty's weights; the Fisher matrix starts at 1 for new parameters and goes on for old ones."""
        super().initialise(context)
        for name, parameter in context.model.named_parameters():
            self.kept["fisher"].setdefault(name, torch.ones_like(parameter))

    def measure(self, gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
        """Update the Fisher matrix."""
        alpha, fisher = self.options.alpha, self.kept["fisher"]
        share = alpha if self.options.decay_on == "new" else 1 - alpha
        for name, gradient in gradients.items():
            fisher[name] = update_fisher(fisher[name], gradient, share)
