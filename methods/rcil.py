"""RCIL: Representation Compensation Networks for Continual Semantic Segmentation (Zhang et al., CVPR 2022).

Released code: github.com/zhangchbin/RCIL at b9aad58. Its network is in ``harness/models/two_branches.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cispbench.harness.machine.lazy import functional, torch
from cispbench.harness.models.merging import merge_branches, mix_branches

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["merge_branches", "mix_branches", "pooled_cube"]

WINDOWS = (4, 8, 12, 16, 20, 24)  # sides of the squares over which a map is averaged, in cells


def pooled_cube(
    features: Sequence[Tensor],
    old_features: Sequence[Tensor],
    logits: Tensor,
    old_logits: Tensor,
    old_classes: int,
    new_classes: int,
    factor: float,
    last_factor: float,
) -> tuple[Tensor, Tensor]:
    """Return the distances of squared maps averaged over squares of positions, and over neighbouring channels.

    ``features`` are n maps (B, D_i, h_i, w_i), the decoder's last; logits (B, C, h, w) and (B, O, h, w) before
    up-sampling, the new model's with new channels added to the background's. Distances are norms per image, meaned
    over images, times ``factor`` and sqrt(C / N). Spatial: a mean over maps and logits, whose factor is
    ``last_factor``. Channel: a mean over maps, whose last one has ``last_factor``. Source: RCIL, section 3.4; the
    release's train.py:25-133.
    """
    background = logits[:, :1] + logits[:, old_classes:].sum(1, keepdim=True)
    narrowed = torch.cat([background, logits[:, 1:old_classes]], 1)
    pairs = [*zip(features, old_features, strict=True), (narrowed, old_logits)]
    differences = [new.float() ** 2 - old.float() ** 2 for new, old in pairs]
    spatial = [_spatial_distance(difference) for difference in differences]
    channel = [_channel_distance(difference) for difference in differences[:-1]]
    ratio = math.sqrt((old_classes + new_classes) / new_classes)
    return _weighted_mean(spatial, factor, last_factor) * ratio, _weighted_mean(channel, factor, last_factor) * ratio


def _spatial_distance(difference: Tensor) -> Tensor:
    # Averages are linear: that of the difference is the difference of the averages. Zeros around the map count in them.
    norms = [_norm(functional.avg_pool2d(difference, side, stride=1, padding=side // 2)) for side in WINDOWS]
    return torch.stack(norms).mean()


def _channel_distance(difference: Tensor) -> Tensor:
    """Average each channel with the two beside it; beyond the first and the last one there are zeros."""
    batch, _, height, width = difference.shape
    channels_last = difference.permute(0, 2, 3, 1).reshape(batch, height * width, -1)
    averaged = functional.avg_pool1d(channels_last, 3, stride=1, padding=1)
    return _norm(averaged)


def _norm(maps: Tensor) -> Tensor:
    return torch.linalg.vector_norm(maps.flatten(1), dim=1).mean()


def _weighted_mean(distances: Sequence[Tensor], factor: float, last_factor: float) -> Tensor:
    factors = [factor] * (len(distances) - 1) + [last_factor]
    return torch.stack([weight * one for weight, one in zip(factors, distances, strict=True)]).mean()
