"""DeepLabV3 with one linear classifier a step, as in the released code of MiB and PLOP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cispbench.harness.models.interface import ClassGroup, Encoder, IncrementalModel
from cispbench.harness.models.output import Output


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


class DeepLabV3(IncrementalModel):
    """A convolutional encoder, the head, and a linear classifier for the classes of each step."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = DeepLabHead(encoder.width, hidden=hidden, width=hidden, rates=rates, activation=activation)
        self.classifiers = nn.ModuleList()
        self.width = hidden

    def grow(self, new_classes: int) -> None:
        """Add a 1x1 convolution for ``new_classes`` classes."""
        if new_classes < 1:
            raise ValueError(f"a model grows by at least 1 class, not {new_classes}")
        self.classifiers.append(nn.Conv2d(self.width, new_classes, 1))

    def forward(self, images: Tensor) -> Output:
        """Compute logits at stride 16 and, up-sampled bilinearly, at full size."""
        x, stages = self.encoder(images)
        decoded = self.head(x)
        groups = self.class_groups()
        weight = torch.cat([group.weight for group in groups])
        masks = functional.conv2d(decoded, weight, torch.cat([group.bias for group in groups]))
        logits = functional.interpolate(masks, size=images.shape[-2:], mode="bilinear", align_corners=False)
        rows = weight.flatten(1)
        return Output(
            logits=logits,
            masks=masks,
            patches=decoded.flatten(2).transpose(1, 2),
            class_features=rows.expand(images.shape[0], -1, -1),
            class_tokens=rows,
            encoded=x,
            stages=(*stages, decoded),
        )

    def class_groups(self) -> list[ClassGroup]:
        """The classifiers' weights and biases, one group a step."""
        return [ClassGroup(cast(nn.Parameter, c.weight), cast(nn.Parameter, c.bias)) for c in self.classifiers]

    def sections(self) -> dict[str, nn.Module]:
        """Encoder and head; the classifiers are the section "classifier"."""
        return {"encoder": self.encoder, "decoder": self.head}
