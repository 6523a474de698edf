"""What every network of the benchmark offers, whatever its family, and what every encoder does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from cispbench.harness.models.output import Output
from cispbench.harness.models.weight_files import load_backbone
from cispbench.splits.errors import WeightsError


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


class Encoder(nn.Module, ABC):
    """The part of a network that turns images into a map of features; pre-trained weights are its own.

    ``width``: the channels E of the map. ``patch``: the Segmenter pads images to sides that are multiples of it.
    ``left_out``: beginnings of names in published weights that it has no use for, as those of the ImageNet classifier.
    ``activated_stages``: stages are the maps after their last activation.
    """

    width: int
    patch: int = 1
    left_out: tuple[str, ...] = ()
    activated_stages: bool = False

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Take float32 (B, 3, H, W); return the last map (B, E, h, w) and the stages (B, D_i, h_i, w_i).

        Stages go from shallow to deep and are usually four. Each one is the feature map *before* its last activation,
        because PLOP distils it there (unless ``activated_stages``); the map is the deepest one after it.
        """

    def backbone(self) -> nn.Module | None:
        """Return the module whose parameters are named as in published weights, or None if there are none."""
        return None

    def load_pretrained(self, state: Mapping[str, Tensor], place: str) -> None:
        """Load published weights into the backbone, without those of ``left_out``.

        Raises WeightsError, naming ``place``, for weights of another architecture and for an encoder without backbone.
        """
        backbone = self.backbone()
        if backbone is None:
            raise WeightsError(
                f"{place}: the encoder {type(self).__name__} has no pre-trained weights.", hint="Use --weights none."
            )
        load_backbone(backbone, self.fitted(state), place=place, ignore=self.left_out)

    def fitted(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Return a state dict (names after ``prefix``) with what depends on the size of images fitted to this size."""
        return dict(state)


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

    def load_encoder(self, state: Mapping[str, Tensor], place: str) -> None:
        """Load pre-trained weights into the encoder, see ``Encoder.load_pretrained``. Raises WeightsError."""
        encoder = self.sections()["encoder"]
        if not isinstance(encoder, Encoder):
            raise WeightsError(
                f"{place}: {type(self).__name__} takes no pre-trained weights.", hint="Use --weights none."
            )
        encoder.load_pretrained(state, place)

    @property
    def num_classes(self) -> int:
        """The number of classes, background included."""
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
        # Done at each switch: every ``train()`` of a loop would unfreeze them again.
        if self.freeze_batch_norm:
            for module in self.sections()["encoder"].modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self
