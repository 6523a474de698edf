"""The layers between a decoder and the channels of one group, in networks with branches."""

from __future__ import annotations

from typing import cast

from torch import nn


class HeadBranch(nn.Module):
    """What computes a group's channels from the decoder's map: ``features`` and the linear ``classifier`` on them.

    ``features``: a 3x3 convolution, a batch norm and a ReLU, which keep the map's width. Convolutions start
    kaiming-normal, as in SSUL's and BARM's released code (clovaai/SSUL at e08ee9c, network/_deeplab.py).
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.classifier = nn.Conv2d(width, channels, 1)
        start_kaiming(self)

    @property
    def weight(self) -> nn.Parameter:
        """The classifier's weight (n, D, 1, 1)."""
        return cast(nn.Parameter, self.classifier.weight)

    @property
    def bias(self) -> nn.Parameter:
        """The classifier's bias (n,)."""
        return cast(nn.Parameter, self.classifier.bias)


def start_kaiming(module: nn.Module) -> None:
    """Draw the weights of all convolutions anew, kaiming-normal by their inputs; biases stay as they are."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
