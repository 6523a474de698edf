"""The networks that come with cispbench, as their entry points name them; torch is imported when one is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from cispbench.harness.models.catalogue import ModelSpec

if TYPE_CHECKING:
    from cispbench.harness.models.interface import Encoder, IncrementalModel
    from cispbench.harness.models.two_branches import SecondBranch

Activation = Literal["relu", "leaky_relu"]


def _deeplabv3(
    name: str,
    encoder: str,
    build: Callable[[int], IncrementalModel],
    weights: str | None = None,
    imports: tuple[str, ...] = ("torchvision",),
) -> ModelSpec:
    # The pooled branch's batch norm sees one value an image and channel: of a single image it can make nothing.
    return ModelSpec(
        name=name, family="deeplabv3", encoder=encoder, build=build, weights=weights, least_images=2,
        batch_norm_in=("encoder", "decoder"), offers=frozenset({"linear"}), imports=imports,
    )  # fmt: skip


def _on_resnet(depth: str, activation: Activation, suffix: str = "") -> ModelSpec:
    build = partial(_build_on_resnet, depth, activation)
    return _deeplabv3(f"deeplabv3-{depth}{suffix}", depth, build, f"{depth}-imagenet")


def _build_on_resnet(depth: str, activation: Activation, image_size: int) -> IncrementalModel:
    from torchvision.models import get_model

    from cispbench.harness.models.encoders import ResNetEncoder

    return _build_deeplabv3(ResNetEncoder(get_model(depth, weights=None), activation), activation)


def _build_deeplabv3(
    encoder: Encoder,
    activation: Activation,
    width: int = 256,
    rates: Sequence[int] = (6, 12, 18),
    second_branch: SecondBranch | None = None,
) -> IncrementalModel:
    """Build the network on an encoder; with ``second_branch`` RCIL's, see ``two_branches.py``."""
    from torch import nn

    from cispbench.harness.models.deeplab import DeepLabV3
    from cispbench.harness.models.encoders import leaky_relu
    from cispbench.harness.models.two_branches import TwoBranchDeepLabV3

    chosen = leaky_relu if activation == "leaky_relu" else nn.ReLU
    if second_branch is None:
        return DeepLabV3(encoder, hidden=width, rates=rates, activation=chosen)
    return TwoBranchDeepLabV3(encoder, second_branch=second_branch, hidden=width, rates=rates, activation=chosen)


def _two_branches(
    name: str,
    encoder: str,
    build: Callable[[int], IncrementalModel],
    weights: str | None = None,
    imports: tuple[str, ...] = ("torchvision",),
) -> ModelSpec:
    entry = _deeplabv3(name, encoder, build, weights, imports)
    return replace(entry, offers=frozenset({"linear", "two_branches"}))


def _rcil_on_resnet101(suffix: str, stem_activation: bool = False, second_branch: SecondBranch = "keep") -> ModelSpec:
    build = partial(_build_rcil_on_resnet101, stem_activation, second_branch)
    return _two_branches(f"deeplabv3-resnet101-rcil{suffix}", "resnet101", build, "resnet101-imagenet")


def _build_rcil_on_resnet101(stem_activation: bool, second_branch: SecondBranch, image_size: int) -> IncrementalModel:
    from torchvision.models import get_model

    from cispbench.harness.models.encoders import ResNetEncoder

    encoder = ResNetEncoder(get_model("resnet101", weights=None), stem_activation=stem_activation)
    return _build_deeplabv3(encoder, "leaky_relu", second_branch=second_branch)


def _build_deeplabv3_on_mobilenet(image_size: int, second_branch: SecondBranch | None = None) -> IncrementalModel:
    from cispbench.harness.models.encoders import MobileNetEncoder

    return _build_deeplabv3(MobileNetEncoder(), "relu", width=128, second_branch=second_branch)


def _build_deeplabv3_tiny(image_size: int, second_branch: SecondBranch | None = None) -> IncrementalModel:
    from cispbench.harness.models.encoders import TinyCNN

    return _build_deeplabv3(TinyCNN(), "leaky_relu", width=48, rates=(1, 2, 3), second_branch=second_branch)


def _on_vit(name: str, vit: str, width: int, heads: int) -> ModelSpec:
    build = partial(_build_on_vit, vit, width, heads)
    return ModelSpec(
        name=name, family="segmenter", encoder=vit, build=build, weights=f"{vit}-augreg", imports=("timm",)
    )


def _build_on_vit(vit: str, width: int, heads: int, image_size: int) -> IncrementalModel:
    from timm import create_model

    from cispbench.harness.models.encoders import ViTEncoder

    net = create_model(vit, pretrained=False, num_classes=0, global_pool="", img_size=image_size, dynamic_img_size=True)
    return _build_segmenter(ViTEncoder(net), width, heads, drop_path=0.1)


def _build_segmenter(encoder: Encoder, width: int, heads: int, drop_path: float = 0.0) -> IncrementalModel:
    from cispbench.harness.models.segmenter import MaskTransformer, Segmenter

    decoder = MaskTransformer(encoder_width=encoder.width, width=width, layers=2, heads=heads, drop_path=drop_path)
    return Segmenter(encoder, decoder)


def _build_segmenter_on_mobilenet(image_size: int) -> IncrementalModel:
    from cispbench.harness.models.encoders import MobileNetEncoder, NormalisedEncoder

    return _build_segmenter(NormalisedEncoder(MobileNetEncoder()), width=192, heads=3)


def _build_segmenter_tiny(image_size: int) -> IncrementalModel:
    from cispbench.harness.models.transformer import TinyViT

    return _build_segmenter(TinyViT(width=64, grid=image_size // 4), width=64, heads=2)


DEEPLABV3_RESNET101 = _on_resnet("resnet101", "leaky_relu")
DEEPLABV3_RESNET50 = _on_resnet("resnet50", "leaky_relu")
DEEPLABV3_RESNET34 = _on_resnet("resnet34", "leaky_relu")
DEEPLABV3_RESNET18 = _on_resnet("resnet18", "leaky_relu")
DEEPLABV3_RESNET101_RELU = _on_resnet("resnet101", "relu", "-relu")
DEEPLABV3_RESNET50_RELU = _on_resnet("resnet50", "relu", "-relu")
DEEPLABV3_MOBILENETV2 = _deeplabv3(
    "deeplabv3-mobilenetv2", "mobilenetv2", _build_deeplabv3_on_mobilenet, "mobilenet_v2-imagenet"
)
DEEPLABV3_TINY = _deeplabv3("deeplabv3-tiny", "tiny-cnn", _build_deeplabv3_tiny, imports=())
DEEPLABV3_RESNET101_RCIL = _rcil_on_resnet101("")
DEEPLABV3_RESNET101_RCIL_LEAKY_STEM = _rcil_on_resnet101("-leaky-stem", stem_activation=True)
DEEPLABV3_RESNET101_RCIL_COPY_MERGED = _rcil_on_resnet101("-copy-merged", second_branch="copy_merged")
DEEPLABV3_MOBILENETV2_RCIL = _two_branches(
    "deeplabv3-mobilenetv2-rcil", "mobilenetv2", partial(_build_deeplabv3_on_mobilenet, second_branch="keep"),
    "mobilenet_v2-imagenet",
)  # fmt: skip
DEEPLABV3_TINY_RCIL = _two_branches(
    "deeplabv3-tiny-rcil", "tiny-cnn", partial(_build_deeplabv3_tiny, second_branch="keep"), imports=()
)
SEGMENTER_VIT_B16 = _on_vit("segmenter-vit-b16", "vit_base_patch16_384", width=768, heads=12)
SEGMENTER_VIT_TI16 = _on_vit("segmenter-vit-ti16", "vit_tiny_patch16_384", width=192, heads=3)
SEGMENTER_MOBILENETV2 = ModelSpec(
    name="segmenter-mobilenetv2", family="segmenter", encoder="mobilenetv2", build=_build_segmenter_on_mobilenet,
    weights="mobilenet_v2-imagenet", batch_norm_in=("encoder",), imports=("torchvision",),
)  # fmt: skip
SEGMENTER_TINY = ModelSpec(name="segmenter-tiny", family="segmenter", encoder="tiny-vit", build=_build_segmenter_tiny)
