"""What a network computes for a batch; a file of its own, so that importing the name does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Features:
    """What the trunk of a network computes for a batch: equal in two networks whose trunks are equal and frozen.

    ``size``: (H, W) of the images in pixels. ``encoded``: (B, E, h, w), the encoder's last map. ``stages``: the
    encoder's stages (B, D_i, h_i, w_i), shallow to deep. ``decoded``: (B, D, h, w), the map that the heads read, before
    any dropout at its end.
    """

    size: tuple[int, int]
    encoded: Tensor
    stages: tuple[Tensor, ...]
    decoded: Tensor

    def part(self, images: slice) -> Features:
        """Return the features of some of the images."""
        stages = tuple(stage[images] for stage in self.stages)
        return replace(self, encoded=self.encoded[images], stages=stages, decoded=self.decoded[images])


@dataclass(frozen=True)
class Output:
    """What a model computes for a batch, with C channels, features of width D on an h x w grid of tokens.

    A channel is a class, but for the ``extra`` ones of a ``Group``. ``logits``: (B, C, H, W), at the size of the
    images, group after group. ``masks``: (B, C, h, w), the logits before up-sampling. ``heads``: the same, a map for
    each group of ``IncrementalModel.class_groups``.
    ``patches``: (B, h*w, D), the features the classifier reads, before any normalisation.
    ``class_features``: (B, C, D), the classes' side of the classifier (projected class tokens, or the rows of a
    linear classifier). ``stages``: the encoder's stages (B, D_i, h_i, w_i), shallow to deep, then the decoder's
    map (B, D, h, w) as the last one. ``encoded``: (B, E, h, w), the encoder's last map, as the decoder reads it.
    ``class_tokens``: (C, D), the classes' learnt parameters. ``extras``: what a network offers besides, by the name in
    ``ModelSpec.offers``, such as ``branch_features``: a map (B, D, h, w) of each group's branch.
    """

    logits: Tensor
    masks: Tensor
    patches: Tensor
    class_features: Tensor
    class_tokens: Tensor
    encoded: Tensor
    stages: tuple[Tensor, ...] = ()
    heads: tuple[Tensor, ...] = ()
    extras: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
