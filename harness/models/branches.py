"""DeepLabV3 with a branch of its own for each group of channels, as SSUL, BARM and their like need it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from cispbench.harness.models.deeplab import DeepLab
from cispbench.harness.models.groups import Group
from cispbench.harness.models.head_branch import HeadBranch
from cispbench.harness.models.interface import ClassGroup, Encoder
from cispbench.harness.models.output import Features, Output
from cispbench.harness.models.upsampling import upsample


class BranchedDeepLabV3(DeepLab):
    """An encoder, a head, and a branch for each group that reads the head's map.

    ``dropout``: the share of the map's entries that training leaves out, before the branches.
    """

    offers = frozenset({"branches"})

    def __init__(self, encoder: Encoder, head: nn.Module, width: int, dropout: float = 0.1) -> None:
        super().__init__(encoder, head, width)
        self.dropout = nn.Dropout(dropout)
        self.branches = nn.ModuleList()

    def add_group(self, group: Group) -> None:
        """Add a branch."""
        self.branches.append(HeadBranch(self.width, group.channels))

    def from_features(self, features: Features, companions: Mapping[str, Tensor] | None = None) -> Output:
        """Compute every branch on the head's grid and the logits, up-sampled bilinearly, at full size."""
        decoded = self.dropout(features.decoded)
        branches = list(self._branches())
        maps = tuple(branch.features(decoded) for branch in branches)
        heads = tuple(branch.classifier(one) for branch, one in zip(branches, maps, strict=True))
        masks = torch.cat(heads, 1)
        rows = torch.cat([branch.weight.flatten(1) for branch in branches])
        return Output(
            logits=upsample(masks, features.size),
            masks=masks,
            heads=heads,
            patches=decoded.flatten(2).transpose(1, 2),
            class_features=rows.expand(masks.shape[0], -1, -1),
            class_tokens=rows,
            encoded=features.encoded,
            stages=(*features.stages, decoded),
            extras={"branch_features": maps},
        )

    def class_groups(self) -> list[ClassGroup]:
        """The branches, and the weights and biases of their classifiers."""
        return [
            ClassGroup(branch.weight, branch.bias, group.role, group.extra, layers=branch)
            for branch, group in zip(self._branches(), self.groups, strict=True)
        ]

    def _branches(self) -> Iterable[HeadBranch]:
        return cast("Iterable[HeadBranch]", self.branches)
