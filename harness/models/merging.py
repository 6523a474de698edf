"""The arithmetic of RCIL's two branches; a file of its own, so that importing the names does not import torch.

Source: RCIL (Zhang et al., CVPR 2022), sections 3.2 and 3.3; zhangchbin/RCIL at b9aad58.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from cispbench.harness.machine.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

# Weight (c, ., k, k) and bias (c) of a convolution, then scale, shift, mean and variance (c) of the norm behind it.
# All four are None where there is no norm.
BranchTensors: TypeAlias = "tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]"

FIRST_ALONE, SECOND_ALONE = 0.33, 0.66  # a draw below the first takes branch one, one below the second branch two


def mix_branches(first: Tensor, second: Tensor, draws: Tensor | None = None) -> Tensor:
    """Return the mean of two branches' normalised outputs (B, c, h, w), or what ``draws`` say.

    ``draws`` (1, c, 1, 1), uniform in [0, 1), choose channel by channel: the first branch alone, the second alone, or
    the mean. Source: RCIL's modules/residual.py:143-156 (a third each, up to the borders 0.33 and 0.66).
    """
    if draws is None:
        return (first + second) / 2
    # On the host, where the draws are: a comparison there costs nothing.
    share = torch.where(draws < FIRST_ALONE, 1.0, torch.where(draws < SECOND_ALONE, 0.0, 0.5))
    return torch.lerp(second, first, share.to(first, non_blocking=True))


def merge_branches(
    first: BranchTensors, second: BranchTensors, eps: float, plain_scale: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of the one convolution that computes the mean of two branches.

    Norms are those of evaluation, with running mean and variance. Their scale is in-place ABN's, ``|gamma| + eps``, or
    with ``plain_scale`` batch norm's own, gamma. Source: RCIL, equation 3; the release's run.py:395-440.
    """
    weights, biases = zip(*(_without_norm(branch, eps, plain_scale) for branch in (first, second)), strict=True)
    return (weights[0] + weights[1]) / 2, (biases[0] + biases[1]) / 2


def _without_norm(branch: BranchTensors, eps: float, plain_scale: bool) -> tuple[Tensor, Tensor]:
    """Return the convolution that computes what the branch's convolution and norm compute."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    weight, bias, scale, shift, mean, variance = branch
    if mean is None or variance is None or scale is None:
        return weight, torch.zeros_like(weight[:, 0, 0, 0]) if bias is None else bias
    if not plain_scale:
        scale = scale.abs() + eps
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, eps, scale, shift)
    return fused[0].detach(), fused[1].detach()
