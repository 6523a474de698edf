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
        load_backbone(encoder.vit, resampled(encoder, state), place=place, ignore=("head.",))
    else:
        raise WeightsError(
            f"{place}: the encoder {type(encoder).__name__} has no pre-trained weights.", hint="Use --weights none."
        )


def resampled(encoder: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the state with a ViT's position embedding (its name after ``prefix``) fitted to the encoder's grid."""
    key, fitted = f"{prefix}pos_embed", dict(state)
    if isinstance(encoder, ViTEncoder) and key in fitted and fitted[key].ndim == 3:
        from timm.layers.pos_embed import resample_abs_pos_embed

        vit: Any = encoder.vit
        if fitted[key].shape != vit.pos_embed.shape:
            fitted[key] = resample_abs_pos_embed(
                fitted[key], list(vit.patch_embed.grid_size), num_prefix_tokens=vit.num_prefix_tokens
            )
    return fitted
