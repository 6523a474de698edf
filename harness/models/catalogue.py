"""The models by name, from ``models.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cispbench.splits.errors import UsageError, nearest
from cispbench.splits.strict_yaml import load_yaml

if TYPE_CHECKING:
    from torch import nn

    from cispbench.harness.models.interface import IncrementalModel

VERSION = 2  # raised whenever a model's numbers change: part of every step's key


@dataclass(frozen=True)
class ModelSpec:
    """One line of ``models.yaml``: ``weights`` names the encoder's usual pre-training, None for a random start."""

    name: str
    family: Literal["deeplabv3", "segmenter"]
    encoder: str
    activation: Literal["relu", "leaky_relu"] = "relu"
    width: int = 256
    rates: tuple[int, ...] = (6, 12, 18)
    heads: int = 3
    layers: int = 2
    drop_path: float = 0.0
    encoder_drop_path: float = 0.0
    weights: str | None = None


@lru_cache(maxsize=1)
def _catalogue() -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = load_yaml(Path(__file__).parent / "models.yaml")
    return entries


def model_names() -> list[str]:
    """Return the names of all models."""
    return list(_catalogue())


def model_spec(name: str) -> ModelSpec:
    """Return the model's description. Raises UsageError with the nearest name."""
    if name not in _catalogue():
        raise UsageError(f"unknown model {name!r}.", hint=nearest(name, model_names()))
    entry = dict(_catalogue()[name])
    if "rates" in entry:
        entry["rates"] = tuple(entry["rates"])
    return ModelSpec(name=name, **entry)


def trains_batch_norm(name: str, frozen: bool) -> bool:
    """Whether a model's training depends on statistics over the batch; ``frozen``: not those of the encoder."""
    spec = model_spec(name)
    return spec.family == "deeplabv3" or (not frozen and not spec.encoder.startswith(("vit", "tiny-vit")))


def least_images(name: str) -> int:
    """Return the number of images that a model can be trained on at once, at least."""
    return 2 if model_spec(name).family == "deeplabv3" else 1  # whose pooled branch's batch norm sees a value an image


def brings_timm(name: str) -> bool:
    """Whether a model's encoder is one of timm's, which takes seconds to import."""
    return model_spec(name).encoder.startswith("vit")


def build_model(name: str, image_size: int) -> IncrementalModel:
    """Build a model with random weights and no class yet; ``image_size`` sets a ViT's position grid."""
    from cispbench.harness.models.deeplab import DeepLabV3
    from cispbench.harness.models.encoders import TokenEncoder, leaky_relu
    from cispbench.harness.models.segmenter import MaskTransformer, Segmenter

    spec = model_spec(name)
    encoder = _build_encoder(spec, image_size)
    if spec.family == "deeplabv3":
        from torch import nn

        activation = leaky_relu if spec.activation == "leaky_relu" else nn.ReLU
        return DeepLabV3(encoder, hidden=spec.width, rates=spec.rates, activation=activation)
    width = int(encoder.width)  # type: ignore[arg-type]
    if spec.encoder in ("mobilenetv2", "tiny-cnn"):
        encoder = TokenEncoder(encoder, width)
    decoder = MaskTransformer(
        encoder_width=width, width=spec.width, layers=spec.layers, heads=spec.heads, drop_path=spec.drop_path
    )
    return Segmenter(encoder, decoder)


def _build_encoder(spec: ModelSpec, image_size: int) -> nn.Module:
    from cispbench.harness.models import encoders
    from cispbench.harness.models.transformer import TinyViT

    if spec.encoder.startswith("resnet"):
        from torchvision.models import get_model

        return encoders.ResNetEncoder(get_model(spec.encoder, weights=None), spec.activation)
    if spec.encoder.startswith("vit"):
        from timm import create_model

        vit = create_model(
            spec.encoder, pretrained=False, num_classes=0, global_pool="", img_size=image_size, dynamic_img_size=True,
            drop_path_rate=spec.encoder_drop_path,
        )  # fmt: skip
        return encoders.ViTEncoder(vit)
    if spec.encoder == "mobilenetv2":
        return encoders.MobileNetEncoder()
    if spec.encoder == "tiny-cnn":
        return encoders.TinyCNN()
    return TinyViT(width=spec.width, grid=image_size // 4)
