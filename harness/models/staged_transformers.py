"""Transformers whose stages shrink the map, as encoders at output stride 32: Swin and MiT (SegFormer), both by timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from cispbench.harness.models.interface import Encoder
from cispbench.harness.models.transformer import choose_attention


class SwinEncoder(Encoder):
    """A Swin transformer of timm (``net``: any image size, windows of one size at every stage).

    Stages are the outputs of its four stages; the map is the last one after the final norm. Images are padded on the
    right and below to multiples of the patches' side. timm shifts a map before it pads it to whole windows, where the
    first implementation pads first; both are the same where windows fit.
    """

    PATCH = 4
    left_out = ("head.",)

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.width: int = net.num_features

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Take (B, 3, H, W); return (B, E, h, w), h = H / 32 rounded up, and four stages at strides 4 to 32."""
        height, width = images.shape[-2:]
        net: Any = self.net
        choose_attention(net, images.device)
        padded = functional.pad(images, (0, -width % self.PATCH, 0, -height % self.PATCH))
        last, stages = net.forward_intermediates(padded)
        return last.permute(0, 3, 1, 2).contiguous(), tuple(stages)

    def backbone(self) -> nn.Module:
        """Return timm's network."""
        net: nn.Module = self.net
        return net

    def fitted(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Return the state in timm's names, which differ from those of the authors' files."""
        from timm.models.swin_transformer import checkpoint_filter_fn

        renamed: dict[str, Tensor] = checkpoint_filter_fn(dict(state), self.net)
        return renamed


class MiTEncoder(Encoder):
    """SegFormer's encoder MiT, which is timm's PVT v2 (``net``) with hidden layers four times as wide at every stage.

    Source: Xie et al., "SegFormer" (NeurIPS 2021), table 6. Stages are the outputs of its four stages after their
    norms; the map is the last one.
    """

    left_out = ("head.",)
    # NVlabs/SegFormer's names, in mmseg/models/backbones/mix_transformer.py. Stages are counted from 1 there.
    _PARTS = ((r"^patch_embed(\d)\.", "downsample."), (r"^block(\d)\.", "blocks."), (r"^norm(\d)\.", "norm."))

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.width: int = net.num_features

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Take (B, 3, H, W); return (B, E, h, w), h = H / 32 rounded up, and four stages at strides 4 to 32."""
        net: Any = self.net
        choose_attention(net, images.device)
        x, stages = net.patch_embed(images), []
        for stage in net.stages:
            x = stage(x)
            stages.append(x)
        return x, tuple(stages)

    def backbone(self) -> nn.Module:
        """Return timm's network."""
        net: nn.Module = self.net
        return net

    def fitted(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Return the state in timm's names, which differ from those of the authors' files."""
        return {self._timms_name(name): value for name, value in state.items()}

    def _timms_name(self, name: str) -> str:
        name = re.sub(r"^patch_embed1\.", "patch_embed.", name).replace(".dwconv.dwconv.", ".dwconv.")
        for pattern, part in self._PARTS:
            name = re.sub(pattern, lambda match, part=part: f"stages.{int(match[1]) - 1}.{part}", name)  # type: ignore[misc]
        return name
