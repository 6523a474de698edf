"""Entries of DeepLabV3 with torchvision's pyramid: with branches (SSUL, BARM), and with linear classifiers (DKD)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from cispbench.harness.models.catalogue import ModelSpec

if TYPE_CHECKING:
    from cispbench.harness.models.interface import Encoder, IncrementalModel

Build = Callable[["Encoder", int, Sequence[int]], "IncrementalModel"]
ENCODER_MOMENTUM = 0.01  # of the encoder's batch norms, in both families' releases; elsewhere PyTorch's 0.1
RATES = (6, 12, 18)  # dilations of the pyramid at output stride 16


def with_branches(encoder: Encoder, width: int, rates: Sequence[int]) -> IncrementalModel:
    """Put the pyramid, ``width`` channels wide and dilated by ``rates``, and branches on an encoder."""
    from cispbench.harness.models.aspp import PyramidHead
    from cispbench.harness.models.branches import BranchedDeepLabV3

    return BranchedDeepLabV3(encoder, PyramidHead(encoder.width, width=width, rates=rates), width)


def _with_classifiers(encoder: Encoder, width: int, rates: Sequence[int]) -> IncrementalModel:
    from cispbench.harness.models.aspp import PyramidConvHead
    from cispbench.harness.models.deeplab import LinearDeepLab

    return LinearDeepLab(encoder, PyramidConvHead(encoder.width, width=width, rates=rates), width, kaiming=True)


def _on_resnet101(build: Build, image_size: int) -> IncrementalModel:
    from torchvision.models import resnet101

    from cispbench.harness.models.encoders import ResNetEncoder

    return build(_slow(ResNetEncoder(resnet101(weights=None), "relu", first_dilated=False)), 256, RATES)


def _on_mobilenet(build: Build, image_size: int) -> IncrementalModel:
    from cispbench.harness.models.encoders import MobileNetEncoder

    return build(_slow(MobileNetEncoder()), 128, RATES)


def _on_tiny(build: Build, image_size: int) -> IncrementalModel:
    from cispbench.harness.models.encoders import TinyCNN

    return build(_slow(TinyCNN()), 48, (1, 2, 3))


def _slow(encoder: Encoder) -> Encoder:
    from torch import nn

    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = ENCODER_MOMENTUM
    return encoder


def _entries(
    short: str, encoder: str, on: Callable[[Build, int], IncrementalModel], weights: str | None
) -> tuple[ModelSpec, ModelSpec]:
    """Return the entries of an encoder, with branches and with linear classifiers."""
    # The pooled branch's batch norm sees one value an image and channel: of a single image it can make nothing.
    branches = ModelSpec(
        name=f"deeplabv3-{short}-branches", family="deeplabv3", encoder=encoder, build=partial(on, with_branches),
        weights=weights, least_images=2, batch_norm_in=("encoder", "decoder", "classifier"),
        offers=frozenset({"branches", "branch_features"}), imports=("torchvision",),
    )  # fmt: skip
    classifiers = ModelSpec(
        name=f"deeplabv3-{short}-dkd", family="deeplabv3", encoder=encoder, build=partial(on, _with_classifiers),
        weights=weights, least_images=2, batch_norm_in=("encoder", "decoder"), offers=frozenset({"linear"}),
        imports=("torchvision",),
    )  # fmt: skip
    return branches, classifiers


RESNET101_BRANCHES, RESNET101_DKD = _entries("resnet101", "resnet101", _on_resnet101, "resnet101-imagenet")
MOBILENETV2_BRANCHES, MOBILENETV2_DKD = _entries("mobilenetv2", "mobilenetv2", _on_mobilenet, "mobilenet_v2-imagenet")
TINY_BRANCHES, TINY_DKD = _entries("tiny", "tiny-cnn", _on_tiny, None)
