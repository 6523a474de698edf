"""What every network of the benchmark offers, whatever its family, and what every encoder does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cispbench.harness.models.groups import AUXILIARY, CLASSES, CLASSIFIER, Group
from cispbench.harness.models.head_branch import HeadBranch
from cispbench.harness.models.output import Features, Output
from cispbench.harness.models.weight_files import load_backbone
from cispbench.splits.errors import WeightsError


@dataclass(frozen=True)
class ClassGroup:
    """The parameters of the n channels that were added together; ``role`` and ``extra`` as in their ``Group``.

    ``weight`` has n x D elements: (n, D, 1, 1) in a convolution, (1, n, D) as tokens. ``bias``: (n,). ``others``: what
    else belongs to the group alone, such as the gains of a norm. ``layers``: see ``branch``.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    role: str = CLASSES
    extra: int = 0
    others: tuple[nn.Parameter, ...] = ()
    layers: HeadBranch | None = None

    @property
    def rows(self) -> Tensor:
        """The weights as a view (n, D) that shares memory with the parameter."""
        return self.weight.view(self.bias.numel(), -1)

    @property
    def classes(self) -> int:
        """The number of classes among the channels."""
        return self.bias.numel() - self.extra

    @property
    def branch(self) -> HeadBranch:
        """The layers between the decoder and the channels, in networks that offer "branches". Otherwise ValueError."""
        if self.layers is None:
            raise ValueError("the network has no branches; a method that reads them says needs = {'branches'}")
        return self.layers

    @torch.no_grad()
    def start_from(self, other: ClassGroup, *, bias: bool = True) -> None:
        """Copy another group's layers, and the row and bias of its first channel into every channel of this one."""
        self.start_layers_from(other)
        self.rows.copy_(other.rows[:1].expand_as(self.rows))
        if bias:
            self.bias.copy_(other.bias[:1].expand_as(self.bias))

    def start_layers_from(self, other: ClassGroup) -> None:
        """Copy what lies below the classifier from another group, norms' statistics included; nothing without branches.

        To be called before rows are copied: they mean the same only on equal layers.
        """
        if self.layers is not None:
            self.layers.features.load_state_dict(other.branch.features.state_dict())

    def parameters(self) -> list[nn.Parameter]:
        """Return all parameters that belong to the group alone: those of its branch, or weight, bias and others."""
        return [self.weight, self.bias, *self.others] if self.layers is None else list(self.layers.parameters())


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
    """A segmentation network that grows by the groups of a step.

    ``forward(images)`` takes float32 (B, 3, H, W) and returns an ``Output`` over all channels added so far. Class 0 is
    the background, which comes with the first growth. ``groups``: what the network has grown by, in order. ``offers``:
    see ``ModelSpec.offers``; what is in ``Output.extras`` need not be named again.
    """

    offers: ClassVar[frozenset[str]] = frozenset()
    freeze_batch_norm: bool = False
    frozen_modules: frozenset[str] = frozenset()
    frozen_parameters: tuple[nn.Parameter, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[Group] = []

    def grow(self, groups: int | Sequence[Group]) -> None:
        """Add the groups of ``Method.layout``; a number stands for one group of as many classes.

        The background counts among the classes of the first call. Raises ValueError for no group at all, and for one
        that the network cannot have; then nothing is added.
        """
        asked = (Group(groups),) if isinstance(groups, int) else tuple(groups)
        if not asked:
            raise ValueError("a model grows by at least 1 group, and there is none")
        for group in asked:
            reason = self.refusal(group)
            if reason is not None:
                raise ValueError(f"{type(self).__name__} cannot grow by {group}: {reason}")
        for group in asked:
            for part in self.parts(group):
                self.add_group(part)
                self.groups.append(part)

    def refusal(self, group: Group) -> str | None:
        """Return why the network cannot have a group, or None if it can; by default there is no auxiliary one."""
        return "its groups all pass gradients back" if group.role == AUXILIARY else None

    def parts(self, group: Group) -> tuple[Group, ...]:
        """Return what the network keeps apart of a group that is added; by default the group as it is."""
        return (group,)

    @abstractmethod
    def add_group(self, group: Group) -> None:
        """Add the channels of a group, with random parameters; ``grow`` calls it."""

    def forward(
        self, images: Tensor, companions: Mapping[str, Tensor] | None = None, features: Features | None = None
    ) -> Output:
        """Compute logits and features, see ``Output``.

        ``companions``: ``Batch.companions``, for the networks that read them. ``features``: what ``features(images)``
        returned, here or by a network with an equal trunk; the trunk is then not run.
        """
        return self.from_features(self.features(images) if features is None else features, companions)

    @abstractmethod
    def features(self, images: Tensor) -> Features:
        """Run the trunk: all that does not depend on the groups, up to any dropout at its end."""

    @abstractmethod
    def from_features(self, features: Features, companions: Mapping[str, Tensor] | None = None) -> Output:
        """Run what follows the trunk."""

    def trunk(self) -> tuple[nn.Module, ...]:
        """Return the modules that ``features`` runs; by default all sections."""
        return tuple(self.sections().values())

    @abstractmethod
    def class_groups(self) -> list[ClassGroup]:
        """Return the parameters of each of ``groups`` (the background may be one of its own)."""

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
        """The number of classes, background included; channels that are no classes do not count."""
        return sum(group.classes for group in self.groups)

    def named_sections(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Yield (section, parameter name, parameter); what belongs to no part is "classifier"."""
        prefixes = {id(p): part for part, module in self.sections().items() for p in module.parameters()}
        for name, parameter in self.named_parameters():
            yield prefixes.get(id(parameter), CLASSIFIER), name, parameter

    def trains_batch_norm(self) -> bool:
        """Whether training uses and changes the statistics of some batch norm."""
        kept = {id(module) for module in self._kept_in_evaluation()}
        return any(isinstance(module, _BatchNorm) and id(module) not in kept for module in self.modules())

    def freeze(self, parameters: Iterable[nn.Parameter], modules: Iterable[str]) -> None:
        """Keep parameters from learning and modules (by name) in evaluation mode, instead of any frozen before.

        ``train()`` obeys it from its next call on. Parameters that the network itself keeps from learning stay so.
        """
        for parameter in self.frozen_parameters:
            parameter.requires_grad_(True)
        self.frozen_parameters = tuple(parameter for parameter in parameters if parameter.requires_grad)
        for parameter in self.frozen_parameters:
            parameter.requires_grad_(False)
        # Names, not modules: several devices replace the batch norms by ones that share their statistics.
        self.frozen_modules = frozenset(modules)

    def train(self, mode: bool = True) -> IncrementalModel:
        """Switch to training mode, but for what is frozen.

        With ``freeze_batch_norm`` the encoder's batch norms keep their statistics.
        """
        super().train(mode)
        # Done at each switch: every ``train()`` of a loop would unfreeze them again.
        for module in self._kept_in_evaluation():
            module.eval()
        return self

    def _kept_in_evaluation(self) -> Iterator[nn.Module]:
        if self.freeze_batch_norm:
            yield from (part for part in self.sections()["encoder"].modules() if isinstance(part, _BatchNorm))
        if self.frozen_modules:
            yield from (module for name, module in self.named_modules() if name in self.frozen_modules)
