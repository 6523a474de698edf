"""DeepLabV3 with one linear classifier a step, as in the released code of MiB and PLOP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cispbench.harness.models.groups import AUXILIARY, Group
from cispbench.harness.models.head_branch import start_kaiming
from cispbench.harness.models.interface import ClassGroup, Encoder, IncrementalModel
from cispbench.harness.models.output import Features, Output
from cispbench.harness.models.upsampling import upsample


class DeepLabHead(nn.Module):
    """Atrous spatial pyramid with image pooling, reduced to ``width`` channels.

    The pooled branch is added to the reduced pyramid before the last norm (fcdl94/MiB, modules/deeplab.py).
    The map that PLOP distils is the one after the last activation.
    """

    def __init__(
        self, inputs: int, *, hidden: int, width: int, rates: Sequence[int], activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.map_convs = nn.ModuleList([nn.Conv2d(inputs, hidden, 1, bias=False)])
        for rate in rates:
            self.map_convs.append(nn.Conv2d(inputs, hidden, 3, bias=False, dilation=rate, padding=rate))
        self.map_bn: nn.Module = nn.BatchNorm2d(hidden * (len(rates) + 1))
        self.global_pooling_conv = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.global_pooling_bn = nn.BatchNorm2d(hidden)
        self.red_conv = nn.Conv2d(hidden * (len(rates) + 1), width, 1, bias=False)
        self.pool_red_conv = nn.Conv2d(hidden, width, 1, bias=False)
        self.red_bn = nn.BatchNorm2d(width)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, E, h, w), return (B, D, h, w)."""
        pyramid = torch.cat([convolution(x) for convolution in self.map_convs], 1)
        pyramid = self.red_conv(self.activation(self.map_bn(pyramid)))
        pooled = self.global_pooling_bn(self.global_pooling_conv(x.mean((2, 3), keepdim=True)))
        out: Tensor = self.activation(self.red_bn(pyramid + self.pool_red_conv(self.activation(pooled))))
        return out


class DeepLab(IncrementalModel):
    """An encoder and a head, whose map of ``width`` channels the groups' classifiers read."""

    def __init__(self, encoder: Encoder, head: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.width = width

    def features(self, images: Tensor) -> Features:
        """Run encoder and head."""
        encoded, stages = self.encoder(images)
        height, width = images.shape[-2:]
        return Features((height, width), encoded, stages, self.head(encoded))

    def sections(self) -> dict[str, nn.Module]:
        """Encoder and head; the classifiers are the section "classifier"."""
        return {"encoder": self.encoder, "decoder": self.head}


class LinearDeepLab(DeepLab):
    """A linear classifier, which is a 1x1 convolution, for each group.

    ``kaiming``: classifiers start kaiming-normal, as DKD's, instead of as PyTorch does it.
    """

    offers = frozenset({"linear"})

    def __init__(self, encoder: Encoder, head: nn.Module, width: int, *, kaiming: bool = False) -> None:
        super().__init__(encoder, head, width)
        self.classifiers = nn.ModuleList()
        self.kaiming = kaiming

    def add_group(self, group: Group) -> None:
        """Add a 1x1 convolution."""
        self.classifiers.append(nn.Conv2d(self.width, group.channels, 1))
        if self.kaiming:
            start_kaiming(self.classifiers[-1])

    def refusal(self, group: Group) -> str | None:
        """Every group can be had."""
        return None

    def from_features(self, features: Features, companions: Mapping[str, Tensor] | None = None) -> Output:
        """Compute logits on the head's grid and, up-sampled bilinearly, at full size."""
        groups = self.class_groups()
        weight = torch.cat([group.weight for group in groups])
        masks, heads = self._maps(features.decoded, groups, weight)
        rows = weight.flatten(1)
        return Output(
            logits=upsample(masks, features.size),
            masks=masks,
            heads=heads,
            patches=features.decoded.flatten(2).transpose(1, 2),
            class_features=rows.expand(masks.shape[0], -1, -1),
            class_tokens=rows,
            encoded=features.encoded,
            stages=(*features.stages, features.decoded),
        )

    def _maps(self, decoded: Tensor, groups: list[ClassGroup], weight: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        if any(group.role == AUXILIARY for group in groups):
            maps = tuple(
                functional.conv2d(decoded.detach() if group.role == AUXILIARY else decoded, group.weight, group.bias)
                for group in groups
            )
            return torch.cat(maps, 1), maps
        masks = functional.conv2d(decoded, weight, torch.cat([group.bias for group in groups]))
        return masks, torch.split(masks, [group.bias.numel() for group in groups], 1)

    def class_groups(self) -> list[ClassGroup]:
        """The classifiers' weights and biases."""
        pairs = zip(self.classifiers, self.groups, strict=True)
        return [
            ClassGroup(cast(nn.Parameter, c.weight), cast(nn.Parameter, c.bias), group.role, group.extra)
            for c, group in pairs
        ]


class DeepLabV3(LinearDeepLab):
    """A convolutional encoder, MiB's head, and linear classifiers."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        head = DeepLabHead(encoder.width, hidden=hidden, width=hidden, rates=rates, activation=activation)
        super().__init__(encoder, head, hidden)
