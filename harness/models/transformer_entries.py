"""Entries of DeepLabV3 on transformers whose stages shrink the map: Swin-B and MiT-B2 (``staged_transformers.py``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from cispbench.harness.models.catalogue import ModelSpec
from cispbench.harness.models.pyramids import RATES, with_branches

if TYPE_CHECKING:
    from cispbench.harness.models.interface import Encoder, IncrementalModel

SWIN = "swin_base_patch4_window12_384"


def _plain(encoder: Encoder) -> IncrementalModel:
    from cispbench.harness.models.deeplab import DeepLabV3

    return DeepLabV3(encoder)


def _branched(encoder: Encoder) -> IncrementalModel:
    return with_branches(encoder, 256, RATES)


def _on_swin(network: Callable[[Encoder], IncrementalModel], image_size: int) -> IncrementalModel:
    from timm import create_model

    from cispbench.harness.models.staged_transformers import SwinEncoder

    # Windows of 12 at every stage, whatever the image size: otherwise the weights' tables of positions do not fit.
    net = create_model(
        SWIN, pretrained=False, num_classes=0, img_size=image_size + -image_size % 4, strict_img_size=False,
        always_partition=True, drop_path_rate=0.3,
    )  # fmt: skip
    return network(SwinEncoder(net))


def _on_mit_b2(network: Callable[[Encoder], IncrementalModel], image_size: int) -> IncrementalModel:
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    from cispbench.harness.models.staged_transformers import MiTEncoder

    net = PyramidVisionTransformerV2(
        embed_dims=(64, 128, 320, 512), depths=(3, 4, 6, 3), num_heads=(1, 2, 5, 8), mlp_ratios=(4.0, 4.0, 4.0, 4.0),
        sr_ratios=(8, 4, 2, 1), drop_path_rate=0.1, num_classes=0,
    )  # fmt: skip
    return network(MiTEncoder(net))


SWIN_B = ModelSpec(
    name="deeplabv3-swin-b", family="deeplabv3", encoder=SWIN, build=partial(_on_swin, _plain),
    weights=f"{SWIN}-in22k", least_images=2, batch_norm_in=("decoder",), imports=("timm",),
    offers=frozenset({"linear"}),
)  # fmt: skip
SWIN_B_BRANCHES = ModelSpec(
    name="deeplabv3-swin-b-branches", family="deeplabv3", encoder=SWIN, build=partial(_on_swin, _branched),
    weights=f"{SWIN}-in22k", least_images=2, batch_norm_in=("decoder", "classifier"), imports=("timm",),
    offers=frozenset({"branches", "branch_features"}),
)  # fmt: skip
MIT_B2 = ModelSpec(
    name="deeplabv3-mit-b2", family="deeplabv3", encoder="mit_b2", build=partial(_on_mit_b2, _plain), least_images=2,
    batch_norm_in=("decoder",), imports=("timm",), offers=frozenset({"linear"}),
)  # fmt: skip
