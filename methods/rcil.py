"""RCIL: Representation Compensation Networks for Continual Semantic Segmentation (Zhang et al., CVPR 2022).

Released code: github.com/zhangchbin/RCIL at b9aad58. Its network is in ``harness/models/two_branches.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cispbench.harness.machine.lazy import functional, torch
from cispbench.harness.method import Batch, Method, Output, StepContext
from cispbench.harness.models.merging import merge_branches, mix_branches
from cispbench.methods.losses import Weight, unbiased_cross_entropy, unbiased_distillation
from cispbench.methods.mib import start_from_background

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RCIL", "RCILOptions", "merge_branches", "mix_branches", "pooled_cube"]

WINDOWS = (4, 8, 12, 16, 20, 24)  # sides of the squares over which a map is averaged, in cells


@dataclass(frozen=True)
class RCILOptions:
    """RCIL's options: the weights of the output distillation and of the pooled cube, and how new classes start.

    ``cube_last``: the weight of the last map of each list, the logits and the decoder's map. ``balanced_bias``: new
    biases start from the background's, which is lowered, as in MiB; as released they start at random.
    """

    distillation: Weight = 100.0
    cube: Weight = 0.01
    cube_last: Weight = 5e-4
    balanced_bias: bool = False


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
    # Averages are linear: that of the difference is the difference of the averages.
    return torch.stack([_norm(_averaged(difference, side)) for side in WINDOWS]).mean()


def _averaged(maps: Tensor, side: int) -> Tensor:
    """Average (B, D, h, w) over all squares, those around the map included, whose zeros count; (B, D, h + 1, w + 1).

    As products with band matrices, for rows and for columns: ten times as fast as pooling with such wide windows.
    """
    rows, columns = (_band(length, side, maps) for length in maps.shape[-2:])
    return rows @ maps @ columns.T


def _band(length: int, side: int, like: Tensor) -> Tensor:
    """Return the matrix (length + 1, length) whose row i averages the cells from i - side / 2 to i + side / 2 - 1."""
    cells = torch.arange(length, device=like.device)
    starts = torch.arange(length + 1, device=like.device)[:, None] - side // 2
    return ((cells >= starts) & (cells < starts + side)).to(like.dtype) / side


def _channel_distance(difference: Tensor) -> Tensor:
    """Average each channel with the two beside it; beyond the first and the last one there are zeros."""
    batch, _, height, width = difference.shape
    channels_last = difference.permute(0, 2, 3, 1).reshape(batch, height * width, -1)
    averaged = functional.avg_pool1d(channels_last, 3, stride=1, padding=1)
    return _norm(averaged)


def _norm(maps: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(maps.flatten(1), dim=1)
    return norms.mean()


def _weighted_mean(distances: Sequence[Tensor], factor: float, last_factor: float) -> Tensor:
    factors = [factor] * (len(distances) - 1) + [last_factor]
    return torch.stack([weight * one for weight, one in zip(factors, distances, strict=True)]).mean()


class RCIL(Method):
    """Unbiased cross-entropy and distillation as MiB's, and the pooled cube, on a network with two branches."""

    name = "rcil"
    Options = RCILOptions
    options: RCILOptions
    needs = frozenset({"two_branches"})
    micro_batches = False  # the branches of a channel are drawn once for a batch

    def initialise(self, context: StepContext) -> None:
        """Start the new classes' weights, or all of the classifier, from the background's."""
        if self.options.balanced_bias:
            start_from_background(context.model)
        else:
            groups = context.model.class_groups()
            with torch.no_grad():
                groups[-1].rows.copy_(groups[0].rows[:1].expand_as(groups[-1].rows))

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the unbiased cross-entropy, the distillation, and the spatial and the channel part of the cube."""
        assert previous is not None  # the harness trains step 0
        options = self.options
        spatial, channel = pooled_cube(
            output.stages, previous.stages, output.masks, previous.masks, context.old_classes, context.new_classes,
            options.cube, options.cube_last,
        )  # fmt: skip
        return {
            "cross_entropy": unbiased_cross_entropy(output.logits, batch.target, context.old_classes),
            "distillation": options.distillation * unbiased_distillation(output.logits, previous.logits),
            "pooled_cube": spatial + channel,
        }
