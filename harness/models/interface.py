"""What every network of the benchmark offers, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from cispbench.harness.models.output import Output


@dataclass(frozen=True)
class ClassGroup:
    """The parameters of the n classes that were added together.

    ``weight`` has n x D elements: (n, D, 1, 1) in a convolution, (1, n, D) as tokens. ``bias``: (n,).
    """

    weight: nn.Parameter
    bias: nn.Parameter

    @property
    def rows(self) -> Tensor:
        """The weights as a view (n, D) that shares memory with the parameter."""
        return self.weight.view(self.bias.numel(), -1)


class IncrementalModel(nn.Module, ABC):
    """A segmentation network that grows by the classes of a step.

    ``forward(images)`` takes float32 (B, 3, H, W) and returns an ``Output`` over all classes added so far; class 0
    is the background, which comes with the first growth.
    """

    freeze_batch_norm: bool = False

    @abstractmethod
    def grow(self, new_classes: int) -> None:
        """Add ``new_classes`` classes (background counts among those of the first call); at least 1."""

    @abstractmethod
    def forward(self, images: Tensor) -> Output:
        """Compute logits and features, see ``Output``."""

    @abstractmethod
    def class_groups(self) -> list[ClassGroup]:
        """Return the classes' parameters, a group each time the model grew (background may be one of its own)."""

    @abstractmethod
    def sections(self) -> dict[str, nn.Module]:
        """Return the parts that may have learning rates of their own: "encoder" and "decoder"."""

    @property
    def num_classes(self) -> int:
        """Classes the model can tell apart, background included."""
        return sum(group.bias.numel() for group in self.class_groups())

    def named_sections(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Yield (section, parameter name, parameter); what belongs to no part is "classifier"."""
        prefixes = {id(p): part for part, module in self.sections().items() for p in module.parameters()}
        for name, parameter in self.named_parameters():
            yield prefixes.get(id(parameter), "classifier"), name, parameter

    def trains_batch_norm(self) -> bool:
        """Whether training uses and changes the statistics of some batch norm."""
        norms = [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if self.freeze_batch_norm:
            frozen = {id(module) for module in self.sections()["encoder"].modules()}
            norms = [norm for norm in norms if id(norm) not in frozen]
        return bool(norms)

    def train(self, mode: bool = True) -> IncrementalModel:
        """Switch to training mode; with ``freeze_batch_norm`` the encoder's batch norms keep their statistics."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.sections()["encoder"].modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self
