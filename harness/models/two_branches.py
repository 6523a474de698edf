"""DeepLabV3 with RCIL's representation compensation: each 3x3 convolution and its norm exist twice.

In training a channel takes the first branch's output, the second's, or their mean, as drawn anew in each forward pass;
in evaluation the mean. When the network grows, both branches are merged into the first one, which is frozen: a
convolution with a bias, without a norm. The second one goes on learning. Source: RCIL (Zhang et al., CVPR 2022),
sections 3.2 and 3.3; zhangchbin/RCIL at b9aad58, modules/residual.py, modules/deeplab.py, run.py:395-440.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from cispbench.harness.models.deeplab import DeepLabV3
from cispbench.harness.models.groups import Group
from cispbench.harness.models.interface import Encoder
from cispbench.harness.models.merging import BranchTensors, merge_branches, mix_branches

SecondBranch = Literal["keep", "copy_merged"]


class Branch(nn.Module):
    """Convolutions side by side, whose outputs are concatenated, and one norm behind them; none once merged."""

    def __init__(self, convolutions: Iterable[nn.Conv2d], norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)
        self.norm: nn.Module = norm

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, ., h, w), return (B, c, h, w)."""
        maps = [convolution(x) for convolution in self.convolutions]
        out: Tensor = self.norm(maps[0] if len(maps) == 1 else torch.cat(maps, 1))
        return out

    def tensors(self) -> list[BranchTensors]:
        """Return what ``merge_branches`` takes, convolution by convolution, each with its channels of the norm."""
        convolutions = [cast(nn.Conv2d, convolution) for convolution in self.convolutions]
        parts: list[Sequence[Tensor | None]] = [[None] * len(convolutions)] * 4
        if isinstance(norm := self.norm, nn.BatchNorm2d):
            sizes = [convolution.out_channels for convolution in convolutions]
            of_norm = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            parts = [torch.split(cast(Tensor, part), sizes) for part in of_norm]
        own = zip(convolutions, *parts, strict=True)
        return [(convolution.weight, convolution.bias, *norm_parts) for convolution, *norm_parts in own]


class Draws:
    """Uniform random numbers from a generator of their own; a copy goes on from the same state."""

    def __init__(self) -> None:
        self.generator = torch.Generator()

    def __call__(self, channels: int) -> Tensor:
        """Return numbers (1, ``channels``, 1, 1) in [0, 1), on the CPU: every kind of device gets the same ones."""
        return torch.rand(1, channels, 1, 1, generator=self.generator, device="cpu")

    def __deepcopy__(self, memo: dict[int, Any]) -> Draws:
        # Written out, because torch 2.4 cannot copy a generator. In the memo, so that a copied network shares one.
        copied = memo[id(self)] = Draws()
        copied.generator.set_state(self.generator.get_state())
        return copied


class TwoBranches(nn.Module):
    """Two branches in the place of one; ``fresh``: the second's convolutions start at random, not as the first's."""

    def __init__(self, first: Branch, draws: Draws, fresh: bool) -> None:
        super().__init__()
        self.first, self.second = first, copy.deepcopy(first)
        self.draws = draws
        self.eps = cast(nn.BatchNorm2d, first.norm).eps
        if fresh:
            for convolution in self.second.convolutions:
                cast(nn.Conv2d, convolution).reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, ., h, w), return the mixed maps (B, c, h, w), normalised and without activation."""
        first, second = self.first(x), self.second(x)
        return mix_branches(first, second, self.draws(first.shape[1]) if self.training else None)

    @torch.no_grad()
    def merge(self, second_branch: SecondBranch) -> None:
        """Merge both branches into the first one and freeze it.

        The second one is kept, so that the function changes, or with "copy_merged" becomes the merged one, whose norm
        then changes nothing until it is trained.
        """
        pairs = zip(self.first.tensors(), self.second.tensors(), strict=True)
        merged = [merge_branches(first, second, self.eps, plain_scale=True) for first, second in pairs]
        for convolution, (weight, bias) in zip(self.first.convolutions, merged, strict=True):
            convolution.weight, convolution.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.first.norm = nn.Identity()
        self.first.requires_grad_(False)
        if second_branch == "copy_merged":
            self._copy_into_second(merged)

    def _copy_into_second(self, merged: Sequence[tuple[Tensor, Tensor]]) -> None:
        norm = cast(nn.BatchNorm2d, self.second.norm)
        norm.reset_parameters()  # gamma 1, mean 0, variance 1
        norm.weight.fill_((1 + norm.eps) ** 0.5)
        norm.bias.copy_(torch.cat([bias for _, bias in merged]))
        for convolution, (weight, _) in zip(self.second.convolutions, merged, strict=True):
            cast(nn.Conv2d, convolution).weight.copy_(weight)


def double_convolutions(module: nn.Module, draws: Draws, fresh: bool) -> None:
    """Put two branches in the place of each 3x3 convolution that a batch norm directly follows."""
    for parent in list(module.modules()):
        for (name, convolution), (norm_name, norm) in pairwise(list(parent.named_children())):
            if not isinstance(convolution, nn.Conv2d) or convolution.kernel_size != (3, 3):
                continue
            if isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, TwoBranches(Branch([convolution], norm), draws, fresh))
                setattr(parent, norm_name, nn.Identity())


class TwoBranchDeepLabV3(DeepLabV3):
    """DeepLabV3 whose first growth doubles its 3x3 convolutions and its pyramid; each later one merges the branches.

    Before the first growth the encoder is an ordinary one and takes published weights; both of its branches then start
    from them. The pyramid's branches start at random. Stages are those after the activation. ``second_branch``: see
    ``TwoBranches.merge``.

    Draws come from a generator of the network's own, on the CPU. Its state is part of the state dict: processes that
    grow the network under one seed draw the same numbers, and a resumed training goes on with them.
    """

    offers = DeepLabV3.offers | {"two_branches"}

    def __init__(self, encoder: Encoder, *, second_branch: SecondBranch = "keep", **options: Any) -> None:
        super().__init__(encoder, **options)
        self.draws, self.second_branch = Draws(), second_branch
        encoder.activated_stages = True

    def grow(self, groups: int | Sequence[Group]) -> None:
        """Add the groups; double the convolutions at the first growth, merge the branches at each later one."""
        first = not self.groups
        super().grow(groups)
        # A number from the seeded generator of the process, which is on the CPU whatever the default device is.
        self.draws.generator.manual_seed(int(torch.randint(2**62, (), device="cpu")))
        if first:
            self._double()
        else:
            for module in self.modules():
                if isinstance(module, TwoBranches):
                    module.merge(self.second_branch)

    def _double(self) -> None:
        head = self.head
        double_convolutions(self.encoder, self.draws, fresh=False)
        pyramid = Branch(cast("Iterable[nn.Conv2d]", head.map_convs), cast(nn.BatchNorm2d, head.map_bn))
        head.map_convs = nn.ModuleList([TwoBranches(pyramid, self.draws, fresh=True)])
        head.map_bn = nn.Identity()

    def get_extra_state(self) -> Tensor:
        """Return the state of the draws, uint8."""
        return self.draws.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Take back the state of the draws."""
        self.draws.generator.set_state(state.cpu())
