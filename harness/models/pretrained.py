"""Put pre-trained weights into a model's encoder, whatever its family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cispbench.harness.models.encoders import MobileNetEncoder, ResNetEncoder, TokenEncoder, ViTEncoder
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.models.weight_files import load_backbone
from cispbench.splits.errors import WeightsError


def load_encoder(model: IncrementalModel, state: Mapping[str, Tensor], place: str) -> None:
    """Load an ImageNet state dict (torchvision's or timm's key names) into the encoder.

    Classification layers are left out; a ViT's position embedding is resampled to the model's grid. Raises
    WeightsError, naming ``place``, for weights of another architecture and for encoders without pre-training.
    """
    encoder = model.sections()["encoder"]
    if isinstance(encoder, TokenEncoder):
        encoder = encoder.encoder
    if isinstance(encoder, ResNetEncoder):
        load_backbone(encoder.net, dict(state), place=place, ignore=("fc.",))
    elif isinstance(encoder, MobileNetEncoder):
        load_backbone(encoder, dict(state), place=place, ignore=("classifier.", "features.18."))
    elif isinstance(encoder, ViTEncoder):
        load_backbone(encoder.vit, _resampled(encoder.vit, dict(state)), place=place, ignore=("head.",))
    else:
        raise WeightsError(
            f"{place}: the encoder {type(encoder).__name__} has no pre-trained weights.", hint="Use --weights none."
        )


def _resampled(vit: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    from timm.layers.pos_embed import resample_abs_pos_embed

    target: Any = vit
    key = "pos_embed"
    if key in state and state[key].ndim == 3 and state[key].shape != target.pos_embed.shape:
        state[key] = resample_abs_pos_embed(
            state[key], list(target.patch_embed.grid_size), num_prefix_tokens=target.num_prefix_tokens
        )
    return state
