"""PLOP: Learning without Forgetting for Continual Semantic Segmentation (Douillard et al., CVPR 2021).

Released code: github.com/arthurdouillard/CVPR2021_PLOP at 4b4a060.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cispbench.harness.machine.lazy import functional, torch
from cispbench.harness.method import Batch, Method, Output, Range, StepContext
from cispbench.methods.losses import (
    VOID,
    Probability,
    Weight,
    cross_entropy,
    each_pixel,
    labelled_pixels,
    new_in_background,
    pixel_cross_entropy,
    pixels_in_mean,
    sum_over_pixels,
)
from cispbench.methods.mib import start_from_background
from cispbench.splits.errors import MethodError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

Median = Literal["released", "true"]
OverClasses = Literal["mean", "sum"]


@dataclass(frozen=True)
class PLOPOptions:
    """PLOP's options: weights of local POD and its scales, then how pseudo-labels are chosen and counted.

    ``bins``, ``minimum`` and ``median`` are arguments of ``entropy_thresholds``. ``entropy``: whether p log p is
    averaged or summed over the classes. ``adaptive_factor`` scales an image's cross-entropy by the share of its
    background pixels that get a pseudo-label. ``void_in_mean``: void pixels, which cost 0, count in the mean of the
    cross-entropy. ``lower_background``: at the start of a step the background's bias is lowered, as in MiB.
    """

    pod: Weight = 0.01
    pod_logits: Weight = 0.0005
    scales: tuple[Annotated[int, Range(least=1, most=1024)], ...] = (1, 2, 4)
    bins: Annotated[int, Range(least=1, most=100_000)] = 100
    minimum: Probability = 0.001
    median: Median = "released"
    entropy: OverClasses = "mean"
    adaptive_factor: bool = True
    void_in_mean: bool = True
    lower_background: bool = True

    def __post_init__(self) -> None:
        if not self.scales:
            raise RecipeError("scales is empty: POD needs at least one.", hint="Switch POD off by --set method.pod=0.")


def entropy(probabilities: Tensor, over_classes: OverClasses = "mean") -> Tensor:
    """Return -(1 / log K) mean_k p_k log(p_k + 1e-8) of (B, K, H, W) as (B, H, W), and of (n, K) as (n,).

    The released code has this mean over classes (CVPR2021_PLOP, train.py, entropy). ``over_classes="sum"`` sums
    instead, which is the normalised entropy, from 0 to 1.
    """
    terms = probabilities * torch.log(probabilities + 1e-8)
    total = terms.mean(1) if over_classes == "mean" else terms.sum(1)
    return -total / math.log(probabilities.shape[1])


def entropy_thresholds(
    batches: Iterable[tuple[Tensor, Tensor]],
    total_classes: int,
    bins: int = 100,
    minimum: float = 0.001,
    median: Median = "released",
    over_classes: OverClasses = "mean",
) -> tuple[Tensor, float]:
    """Return, for each class, the median entropy of the background pixels where the previous model predicts it.

    ``batches`` yields (target (B, H, W), old_logits (B, O, H, W)). Returns thresholds (C,), at least ``minimum``,
    and the maximum entropy log(C), by which entropies are divided. ``median="released"`` keeps a fault of the released
    code (CVPR2021_PLOP, train.py, find_median): its walk over the histogram adds bin numbers instead of counts.
    ``over_classes`` as in ``entropy``. Raises ValueError if ``batches`` is empty.
    """
    max_entropy = math.log(total_classes)
    histogram: Tensor | None = None

    def cell(old_logits: Tensor, target: Tensor) -> Tensor:
        probabilities = old_logits.softmax(1)
        place = (entropy(probabilities, over_classes) / max_entropy * bins).long().clamp(max=bins - 1)
        found = probabilities.max(1).indices * bins + place
        return found.masked_fill(target != 0, total_classes * bins)  # a cell that is not counted

    for target, old_logits in batches:
        if histogram is None:
            histogram = torch.zeros(total_classes * bins, dtype=torch.int64, device=target.device)
        cells = each_pixel(cell, old_logits, target)
        histogram += torch.bincount(cells.flatten(), minlength=total_classes * bins + 1)[:-1]
    if histogram is None:
        raise ValueError("entropy thresholds need at least one batch")
    walk = _released_median if median == "released" else _true_median
    rows = histogram.view(total_classes, bins).tolist()
    values_of = [max(walk(row), minimum) if sum(row) else minimum for row in rows]
    return torch.tensor(values_of, dtype=torch.float32, device=histogram.device), max_entropy


def _released_median(counts: Sequence[int]) -> float:
    """Walk the bins as released: the running sum grows by the bin's number, not by its count."""
    bins, half, running = len(counts), sum(counts) / 2, 0.0
    border, count = 0.0, 0
    for number in range(bins):
        border = number / bins
        count = counts[int(border * bins)]
        if running <= half <= running + count:
            break
        running += border * bins
    missing = half - running
    within = missing / count if count else math.copysign(math.inf, missing) if missing else math.nan
    return border + within / bins


def _true_median(counts: Sequence[int]) -> float:
    """Return the median of a histogram on [0, 1], linear within its bin."""
    bins, half, running = len(counts), sum(counts) / 2, 0
    for number, count in enumerate(counts):
        if count and running + count >= half:
            return (number + (half - running) / count) / bins
        running += count
    return 1.0


def pseudo_labels(
    target: Tensor, old_logits: Tensor, thresholds: Tensor, max_entropy: float, old_classes: int,
    over_classes: OverClasses = "mean",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Label background pixels where the previous model is confident; the other background pixels become void.

    ``target`` (B, H, W), ``old_logits`` (B, O, H, W), ``thresholds`` (C,), ``over_classes`` as in ``entropy``.
    Returns the new target and, per image, the share of background pixels kept: kept / (background + 1e-6), (B,).
    Source: PLOP, section 3.3.
    """

    def labels(old_logits: Tensor, target: Tensor) -> Tensor:
        probabilities = old_logits.softmax(1)
        predicted = probabilities.max(1).indices
        sure = entropy(probabilities, over_classes) / max_entropy < thresholds[predicted]
        return torch.where(target >= old_classes, target, predicted.masked_fill(~sure, VOID))

    filled, background = each_pixel(labels, old_logits, target), target < old_classes
    kept = background & (filled != VOID)
    factor = kept.flatten(1).sum(1).float() / (background.flatten(1).sum(1).float() + 1e-6)
    return filled, factor


def local_pod_embedding(x: Tensor, scales: Sequence[int] = (1, 2, 4)) -> Tensor:
    """Pool (B, D, H, W) over the columns and over the rows of s x s blocks, for every scale s; returns (B, .).

    A block's side is W // s, which must be at least 1. Blocks that reach below the map are cut; all must
    begin inside it. Source: PLOP, equation 6.
    """
    return torch.cat([part for scale in _pooled(x, scales) for part in _in_released_order(*scale)], 1)


def _pooled(x: Tensor, scales: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the means over columns (B, D, H, s) and over rows (B, D, s, W) of each scale's blocks."""
    finest, width = max(scales), x.shape[3]
    # Means of large blocks are means of the means of small ones, where the small ones fill them.
    if width % finest == 0 and not any(finest % scale for scale in scales) and x.shape[2] >= width:
        square, side = x[:, :, :width], width // finest
        columns, rows = functional.avg_pool2d(square, (1, side)), functional.avg_pool2d(square, (side, 1))
        for scale in scales:
            blocks = finest // scale
            yield functional.avg_pool2d(columns, (1, blocks)), functional.avg_pool2d(rows, (blocks, 1))
        return
    for scale in scales:
        side = width // scale
        square = x[:, :, : side * scale, : side * scale]
        below = [square[:, :, i * side : (i + 1) * side] for i in range(scale)]
        rows = torch.stack([block.mean(2) for block in below], 2)
        yield functional.avg_pool2d(square, (1, side)), rows


def _in_released_order(columns: Tensor, rows: Tensor) -> Iterator[Tensor]:
    scale = rows.shape[2]
    side = rows.shape[3] // scale
    for i in range(scale):
        for j in range(scale):
            yield columns[:, :, i * side : (i + 1) * side, j].flatten(1)
            yield rows[:, :, i, j * side : (j + 1) * side].flatten(1)


def pod_loss(
    features: Sequence[Tensor],
    old_features: Sequence[Tensor],
    logits: Tensor,
    old_logits: Tensor,
    old_classes: int,
    new_classes: int,
    factor: float,
    logits_factor: float,
    scales: Sequence[int] = (1, 2, 4),
) -> Tensor:
    """Return local POD over feature maps (each (B, D_i, h_i, w_i)) and logits (B, C, h, w) / (B, O, h, w).

    Maps are squared; the new classes' logits are summed into the background's. Norm of the difference per image,
    mean over images, times factor and sqrt(C / N), mean over the maps. Source: PLOP, section 3.2; its released
    utils/loss.py (features_distillation).
    """
    pairs = [*zip(features, old_features, strict=True), (new_in_background(logits.float(), old_classes), old_logits)]
    weights = [factor] * len(features) + [logits_factor]
    losses = []
    for (new, old), weight in zip(pairs, weights, strict=True):
        # Pooling is linear: the difference of the squared maps is pooled once. A norm does not ask for the order.
        pooled = _pooled(new.float() ** 2 - old.float() ** 2, scales)
        norms = [torch.linalg.vector_norm(part, dim=(1, 2, 3)) for scale in pooled for part in scale]
        losses.append(weight * torch.linalg.vector_norm(torch.stack(norms), dim=0).mean())
    return torch.stack(losses).mean() * math.sqrt((old_classes + new_classes) / new_classes)


class PLOP(Method):
    """Pseudo-labels by entropy, cross-entropy scaled by their share, and local POD distillation."""

    name = "plop"
    Options = PLOPOptions
    options: PLOPOptions
    thresholds: Tensor | None = None

    def initialise(self, context: StepContext) -> None:
        """Start the new classes from the background, as MiB does."""
        start_from_background(context.model, self.options.lower_background)

    def before_training(self, context: StepContext, batches: Iterable[Batch]) -> None:
        """Measure the entropy thresholds in one pass over the step's data."""
        pairs = self._predictions(context, batches)
        options = self.options
        # The maximum entropy is not kept: a resumed instance has the state alone, and computes it again.
        self.thresholds, _ = entropy_thresholds(
            pairs, context.num_classes, options.bins, options.minimum, options.median, options.entropy
        )

    @staticmethod
    def _predictions(context: StepContext, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        assert context.previous is not None
        for batch in batches:
            with torch.inference_mode():
                yield batch.target, context.previous(batch.images).logits

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the cross-entropy on pseudo-labelled targets and the POD distillation."""
        assert previous is not None and self.thresholds is not None  # the harness trains step 0
        self._check_grid(output)
        options = self.options
        pod = pod_loss(
            output.stages, previous.stages, output.masks, previous.masks, context.old_classes, context.new_classes,
            options.pod, options.pod_logits, options.scales,
        )  # fmt: skip
        return {"cross_entropy": self._cross_entropy(batch, output, previous, self.thresholds, context), "pod": pod}

    def _cross_entropy(
        self, batch: Batch, output: Output, previous: Output, thresholds: Tensor, context: StepContext
    ) -> Tensor:
        options = self.options
        target, factor = self._pseudo_labels(batch, previous, thresholds, context)
        if not options.adaptive_factor:
            return cross_entropy(output.logits, target, options.void_in_mean)
        weights = factor[:, None, None].expand_as(target)

        def cost(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
            return weight * pixel_cross_entropy(logits, target)

        total = sum_over_pixels(cost, output.logits, target, weights)
        return total / pixels_in_mean(target, options.void_in_mean)

    def _pseudo_labels(
        self, batch: Batch, previous: Output, thresholds: Tensor, context: StepContext
    ) -> tuple[Tensor, Tensor]:
        max_entropy = math.log(context.num_classes)
        return pseudo_labels(
            batch.target, previous.logits, thresholds, max_entropy, context.old_classes, self.options.entropy
        )

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """Count the labelled pixels, pseudo-labelled ones among them, unless void pixels count in the mean."""
        if self.options.void_in_mean:
            return {}
        assert previous is not None and self.thresholds is not None
        target, _ = self._pseudo_labels(batch, previous, self.thresholds, context)
        return {"cross_entropy": labelled_pixels(target)}

    def _check_grid(self, output: Output) -> None:
        narrowest = min(*(stage.shape[3] for stage in output.stages), output.masks.shape[3])
        if narrowest < max(self.options.scales):
            raise MethodError(
                f"plop cuts feature maps into {max(self.options.scales)} blocks, but one is {narrowest} wide.",
                hint="Use larger crops (--set data.crop=...) or fewer scales (--set method.scales=[1,2]).",
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the thresholds, which cost a pass over the data."""
        return {} if self.thresholds is None else {"thresholds": self.thresholds}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the thresholds."""
        self.thresholds = state.get("thresholds")
