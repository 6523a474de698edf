"""REMINDER: Class Similarity Weighted Knowledge Distillation (Phan et al., CVPR 2022).

Written from the paper's and the release's mathematics (github.com/HieuPhan33/REMINDER at f8d225e, GPL-3); no line of
the release is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cispbench.harness.machine.lazy import functional, torch
from cispbench.methods.losses import VOID

if TYPE_CHECKING:
    from torch import Tensor


def class_sums(
    features: Tensor, target: Tensor, classes: Sequence[int], num_classes: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the sum of the features over each class's pixels (C, D), and the number of these pixels (C, 1).

    ``features`` (B, D, h, w) are up-sampled to ``target`` (B, H, W), bilinearly with aligned corners. Rows of classes
    that are not in ``classes`` are 0. The sums are exact in float32 under autocast, too.
    """
    sums = features.new_zeros(num_classes, features.shape[1], dtype=torch.float32)
    pixels = features.new_zeros(num_classes, 1, dtype=torch.float32)
    rows = _interpolation(features.shape[2], target.shape[1], features.device)
    columns = _interpolation(features.shape[3], target.shape[2], features.device)
    with torch.autocast(features.device.type, enabled=False):
        for number in classes:
            mask = (target == number).float()
            # Up-sampling is linear: the mask is brought to the features' grid instead, 256 times fewer numbers.
            weights = rows @ mask @ columns.T
            sums[number] = (features.float() * weights.unsqueeze(1)).sum((0, 2, 3))
            pixels[number] = mask.sum()
    return sums, pixels


def _interpolation(size: int, larger: int, device: torch.device) -> Tensor:
    """Return the (size, larger) weights that bilinear interpolation gives each of ``size`` values."""
    identity = torch.eye(size, device=device)[None]
    return functional.interpolate(identity, size=larger, mode="linear", align_corners=True)[0]


def batch_prototypes(features: Tensor, target: Tensor, classes: Sequence[int], num_classes: int) -> Tensor:
    """Return the mean feature of each class's pixels in a batch (C, D); 0 for classes not asked for, or absent.

    ``features`` (B, D, h, w), up-sampled as in ``class_sums``; ``target`` (B, H, W). Source: REMINDER's release,
    train.py:20-31.
    """
    sums, pixels = class_sums(features, target, classes, num_classes)
    return sums / pixels.clamp(min=1)


def running_prototypes(
    batches: Iterable[tuple[Tensor, Tensor]], old_prototypes: Tensor, num_classes: int
) -> Tensor:  # fmt: skip
    """Return the prototypes (C, D): the old ones (O, D), then each new class's mean over its batch prototypes.

    ``batches`` yields (features (B, D, h, w), target (B, H, W)). Each batch that shows a class counts the same,
    however many pixels it shows; a class that no batch shows gets 0. Raises ValueError if ``batches`` is empty.
    Source: REMINDER's release, run.py:542-548.
    """
    old = len(old_prototypes)
    total: Tensor | None = None
    seen: Tensor | int = 0
    for features, target in batches:
        sums, pixels = class_sums(features, target, range(old, num_classes), num_classes)
        mean = sums / pixels.clamp(min=1)
        total = mean if total is None else total + mean
        seen = seen + (pixels > 0)
    if total is None:
        raise ValueError("prototypes need at least one batch")
    return torch.cat([old_prototypes.to(total), (total / torch.as_tensor(seen).clamp(min=1))[old:]])


def class_similarity_distillation(
    logits: Tensor,
    old_logits: Tensor,
    target: Tensor,
    prototypes: Tensor,
    old_prototypes: Tensor,
    delta: float = 0.0,
    temperature: float = 3.0,
) -> Tensor:
    """Return the distillation on pixels of new classes, weighted by how similar a new class is to each old one.

    ``logits`` (B, C, H, W), ``old_logits`` (B, O, H, W), ``target`` (B, H, W), ``prototypes`` (C, D) of the new classes
    in this batch, ``old_prototypes`` (O, D). The similarity of two classes is the softmax over the old ones of the
    cosines of the prototypes (0 for a prototype of zeros); what is below ``delta`` / O counts as 0. Both sides are
    narrowed to the old classes. Mean over the new classes' pixels, times ``temperature`` squared; 0 without such
    pixels. Source: REMINDER's release, utils/loss.py:326-357, whose 0 / 0 without such pixels is NaN.
    """
    known = old_logits.shape[1]
    new = (target >= known) & (target != VOID)
    with torch.autocast(logits.device.type, enabled=False):
        cosines = (
            functional.normalize(prototypes.float(), dim=1) @ functional.normalize(old_prototypes.float(), dim=1).T
        )
    similarity = cosines.softmax(1)
    similarity = similarity.masked_fill(similarity < delta / known, 0.0)
    log_probabilities = (logits[:, :known].movedim(1, -1)[new].float() / temperature).log_softmax(1)
    soft = (old_logits.movedim(1, -1)[new].float() / temperature).softmax(1)
    cost = -((soft * similarity[target[new]] + 1e-7) * log_probabilities).sum()
    return temperature**2 * cost / new.sum().clamp(min=1)
