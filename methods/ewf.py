"""EWF: Endpoints Weight Fusion for class-incremental semantic segmentation (Xiao et al., CVPR 2023).

Released code: github.com/schuy1er/EWF_official at 560382d.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cispbench.harness.machine.lazy import torch
from cispbench.harness.method import StepContext
from cispbench.harness.wrapper import Wrapper, WrapperOptions
from cispbench.methods.losses import Probability
from cispbench.splits.errors import MethodError
from cispbench.splits.settings import Setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EWFOptions(WrapperOptions):
    """EWF's options besides the method that it wraps: the release has MiB and PLOP.

    ``fuse_background_bias``: the background's bias, which the base has lowered, is fused, too, and so lowered by a part
    only. ``threshold_choice``: only the share ``moved_share`` of the weights, those that moved most, is fused.
    """

    base: str = "mib"
    fuse_background_bias: bool = True
    threshold_choice: bool = False
    moved_share: Probability = 0.45


def fusion_weight(old_classes: int, new_classes: int) -> float:
    """Return the new model's share a = sqrt(N / (N + O)); O counts background. Source: EWF_official, run.py:512."""
    return math.sqrt(new_classes / (old_classes + new_classes))


def fuse(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], weight: float, moved_share: float | None = None
) -> dict[str, Tensor]:
    """Return the state dict (1 - a) old + a new, a = ``weight``, with the names of ``new``.

    Running statistics are fused like weights. What only ``new`` has, and integers, are taken from it. With
    ``moved_share`` an entry stays as in ``new`` if it moved less than the int(moved_share * n)-th of all n moves, the
    largest first. Raises MethodError if ``old`` has an entry that ``new`` lacks, or has in another shape. Source:
    EWF_official, run.py:512-545; ``moved_share``: its ``--threshold_choice``, with 0.45.
    """
    for name, value in old.items():
        if name not in new or new[name].shape != value.shape:
            shape = tuple(new[name].shape) if name in new else "absent"
            raise MethodError(
                f"{name} is {tuple(value.shape)} in the previous model and {shape} in the new one: no fusion.",
                hint="EWF needs a network whose old parameters keep names and shapes when classes are added.",
            )
    shared = [name for name in new if name in old and new[name].is_floating_point()]
    fused = {
        name: (1 - weight) * old[name] + weight * new[name] if name in shared else new[name].clone() for name in new
    }
    if moved_share is not None:
        moves = torch.cat([(old[name] - new[name]).abs().flatten() for name in shared])
        rank = max(int(moved_share * len(moves)), 1)  # from the largest; kthvalue counts from the smallest
        least = moves.kthvalue(len(moves) - rank + 1).values
        for name in shared:
            fused[name] = torch.where((old[name] - new[name]).abs() < least, new[name], fused[name])
    return fused


class EWF(Wrapper):
    """Another method, whose network is averaged with the previous one after the training of a step.

    Old classifiers are frozen by the recipe (``rates: {old: 0}``).
    """

    name = "ewf"
    Options = EWFOptions
    options: EWFOptions

    def unsupported(self, setting: Setting, model: str) -> str | None:
        """Decline a base that learns all classes at once; else return the base's reason."""
        if self.base.joint:
            return f"{self.base.name} learns all classes in a single step, and EWF fuses the networks of two."
        return self.base.unsupported(setting, model)

    def after_training(self, context: StepContext) -> None:
        """Fuse both networks after the last phase, running statistics included."""
        self.base.after_training(context)
        if context.previous is None or context.phase != self.phases(context.setting, context.step)[-1]:
            return
        options, model = self.options, context.model
        background = model.class_groups()[0].bias.detach()[0].clone()
        weight = fusion_weight(context.old_classes, context.new_classes)
        share = options.moved_share if options.threshold_choice else None
        model.load_state_dict(fuse(context.previous.state_dict(), model.state_dict(), weight, share))
        if not options.fuse_background_bias:
            with torch.no_grad():
                model.class_groups()[0].bias[0] = background
