"""Decoders of torchvision's form: an atrous pyramid whose parts all have a plain batch norm and a ReLU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from cispbench.harness.models.head_branch import start_kaiming


class PyramidHead(nn.Module):
    """torchvision's pyramid with image pooling and its projection, without the dropout that follows there.

    As in the released code of SSUL, MicroSeg, CoinSeg and BARM (clovaai/SSUL at e08ee9c, network/_deeplab.py).
    """

    def __init__(self, inputs: int, *, width: int = 256, rates: Sequence[int] = (6, 12, 18)) -> None:
        super().__init__()
        pyramid = ASPP(inputs, list(rates), width)
        self.convs = pyramid.convs
        self.project = pyramid.project[:3]  # the last one is a dropout, which is the network's
        start_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, E, h, w), return (B, D, h, w)."""
        out: Tensor = self.project(torch.cat([convolution(x) for convolution in self.convs], 1))
        return out


class PyramidConvHead(PyramidHead):
    """The pyramid and its projection, a dropout, then a 3x3 convolution, a batch norm and a ReLU.

    As in the released code of DKD, ALIFE and STAR (cvlab-yonsei/DKD at fb4693f, models/).
    """

    def __init__(
        self, inputs: int, *, width: int = 256, rates: Sequence[int] = (6, 12, 18), dropout: float = 0.1
    ) -> None:
        super().__init__(inputs, width=width, rates=rates)
        self.dropout = nn.Dropout(dropout)
        self.last_conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        start_kaiming(self.last_conv)

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, E, h, w), return (B, D, h, w)."""
        out: Tensor = self.last_conv(self.dropout(super().forward(x)))
        return out
