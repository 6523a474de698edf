"""Encoders at output stride 16: ResNet and MobileNetV2 (torchvision), ViT (timm); a small CNN for quick runs.

``interface.Encoder`` says what each of them returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from cispbench.harness.models.interface import Encoder
from cispbench.harness.models.transformer import as_map, choose_attention


def leaky_relu() -> nn.Module:
    """Return the activation of in-place ABN: leaky ReLU of slope 0.01."""
    return nn.LeakyReLU(0.01)


class ResNetEncoder(Encoder):
    """A ResNet of torchvision (``net``, changed in place) with the last stage dilated instead of strided.

    ``activation``: "leaky_relu" as in the releases of MiB and PLOP (in-place ABN), or "relu". ``stem_activation``:
    whether there is one between the first norm and the pooling. ``first_dilated``: whether the first block of that
    stage is dilated like the others, as there, or not, as torchvision does it.
    """

    left_out = ("fc.",)

    def __init__(
        self, net: Any, activation: str = "leaky_relu", *, stem_activation: bool = True, first_dilated: bool = True
    ) -> None:
        super().__init__()
        _dilate(net.layer4, first=first_dilated)
        act = leaky_relu if activation == "leaky_relu" else nn.ReLU
        for module in net.modules():
            if hasattr(module, "relu"):
                module.relu = act()
        if not stem_activation:
            net.relu = nn.Identity()
        self.net = net
        # ImageNet's classifier is never used: it would only be counted and stored with every step.
        del net.fc, net.avgpool
        self.width: int = net.inplanes

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Take (B, 3, H, W); return (B, E, H/16, W/16) and four stages."""
        net = self.net
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        stages = []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            *first, last = stage
            for block in first:
                x = block(x)
            before = _block_before_activation(last, x)
            x = last.relu(before)
            stages.append(x if self.activated_stages else before)
        return x, tuple(stages)

    def backbone(self) -> nn.Module:
        """Return torchvision's network."""
        net: nn.Module = self.net
        return net


def _dilate(stage: nn.Sequential, first: bool) -> None:
    """Replace a stage's stride of 2 by a dilation of 2, in every block or in all but the ``first``."""
    # The map stays at stride 16, and ImageNet's weights still see the neighbours that they were trained on.
    for number, block in enumerate(stage):
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if module.kernel_size == (3, 3) and (first or number > 0):
                    module.dilation = module.padding = (2, 2)


def _block_before_activation(block: Any, x: Tensor) -> Tensor:
    """Run a residual block up to the sum, leaving its last activation to the caller."""
    convolutions = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if hasattr(block, "conv3"):
        convolutions.append((block.conv3, block.bn3))
    branch = x
    for number, (convolution, norm) in enumerate(convolutions):
        branch = norm(convolution(branch))
        if number + 1 < len(convolutions):
            branch = block.relu(branch)
    return branch + (x if block.downsample is None else block.downsample(x))


class MobileNetEncoder(Encoder):
    """torchvision's MobileNetV2 without its last 1x1 convolution; the stage of stride 32 is dilated."""

    STAGE_ENDS = (3, 6, 13, 17)
    left_out = ("classifier.", "features.18.")

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v2

        features: Any = mobilenet_v2(weights=None).features
        self.features = features[:18]
        for block in self.features[14:]:
            for module in block.modules():
                if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                    module.stride = (1, 1)
                    module.dilation = module.padding = (2, 2)
        self.width = 320

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Take (B, 3, H, W); return (B, 320, H/16, W/16) and four stages (linear bottlenecks: no activation)."""
        x, stages = images, []
        for number, block in enumerate(self.features):
            x = block(x)
            if number in self.STAGE_ENDS:
                stages.append(x)
        return x, tuple(stages)

    def backbone(self) -> nn.Module:
        """Return this encoder, whose layers keep torchvision's names."""
        return self


class TinyCNN(Encoder):
    """Four small convolutional stages at stride 4, for quick runs of the DeepLab family."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        sizes = [(3, width // 2, 2), (width // 2, width, 1), (width, width, 2), (width, width, 1)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=s, padding=1, bias=False), nn.BatchNorm2d(b)) for a, b, s in sizes
        )
        self.activation = leaky_relu()
        self.width = width

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Take (B, 3, H, W); return (B, E, H/4, W/4) and four stages."""
        x, stages = images, []
        for layer in self.layers:
            before = layer(x)
            x = self.activation(before)
            stages.append(x if self.activated_stages else before)
        return x, tuple(stages)


class ViTEncoder(Encoder):
    """A ViT of timm (``vit``: no head, no pooling, any image size); stages are four of its blocks.

    Its layer norms take 1e-5 as epsilon, as in Segmenter's and MBS's released code (segm/model/vit.py), not timm's
    1e-6: with small activations the difference shows in the fourth digit of the logits.
    """

    patch = 16
    left_out = ("head.",)
    EPSILON = 1e-5

    def __init__(self, vit: Any) -> None:
        super().__init__()
        for module in vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = self.EPSILON
        self.vit = vit
        depth = len(vit.blocks)
        self.taken = [max(depth * (i + 1) // 4 - 1, 0) for i in range(4)]
        self.width: int = vit.embed_dim

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Take (B, 3, H, W), sides multiples of 16; return the normalised tokens as a map and four blocks' outputs."""
        vit: Any = self.vit
        choose_attention(vit, images.device)
        tokens, stages = vit.forward_intermediates(images, indices=self.taken, output_fmt="NCHW")
        height, width = stages[-1].shape[-2:]
        return as_map(tokens[:, vit.num_prefix_tokens :], height, width), tuple(stages)

    def backbone(self) -> nn.Module:
        """Return timm's network."""
        vit: nn.Module = self.vit
        return vit

    def fitted(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Return the state with its position embedding (its name after ``prefix``) resampled to this grid."""
        vit: Any = self.vit
        key, fitted = f"{prefix}pos_embed", dict(state)
        if key in fitted and fitted[key].ndim == 3 and fitted[key].shape != vit.pos_embed.shape:
            from timm.layers.pos_embed import resample_abs_pos_embed

            fitted[key] = resample_abs_pos_embed(
                fitted[key], list(vit.patch_embed.grid_size), num_prefix_tokens=vit.num_prefix_tokens
            )
        return fitted


class NormalisedEncoder(Encoder):
    """An encoder whose map is normalised over its channels at every pixel, as a mask transformer expects it."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.width, self.left_out = encoder.width, encoder.left_out

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Take (B, 3, H, W); return the normalised map and the stages."""
        x, stages = self.encoder(images)
        tokens = functional.layer_norm(x.flatten(2).transpose(1, 2), (self.width,))
        return as_map(tokens, x.shape[-2], x.shape[-1]), stages

    def backbone(self) -> nn.Module | None:
        """Return the other encoder's backbone."""
        return self.encoder.backbone()
