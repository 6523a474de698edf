"""REMINDER: Class Similarity Weighted Knowledge Distillation (Phan et al., CVPR 2022).

Written from the paper's and the release's mathematics (github.com/HieuPhan33/REMINDER at f8d225e, GPL-3); no line of
the release is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cispbench.harness.machine.lazy import functional, torch
from cispbench.harness.method import Batch, Output, Range, StepContext
from cispbench.methods.losses import VOID, Weight, cross_entropy, labelled_pixels, sum_over_pixels
from cispbench.methods.plop import PLOP, PLOPOptions
from cispbench.splits.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class REMINDEROptions(PLOPOptions):
    """REMINDER's options: PLOP's, the weight of the class-similarity distillation and its temperature.

    ``delta``: similarities below ``delta`` / O count as 0, O being the number of old classes; 0 keeps all.
    """

    class_similarity: Weight = 0.5
    delta: Annotated[float, Range(least=0, most=1000)] = 0.0
    temperature: Annotated[float, Range(above=0, most=1000)] = 3.0


def new_pixels(target: Tensor, old_classes: int) -> Tensor:
    """Return where ``target`` (B, H, W) shows a new class, as bools of its shape."""
    return (target >= old_classes) & (target != VOID)


def class_sums(features: Tensor, target: Tensor, classes: Sequence[int], num_classes: int) -> tuple[Tensor, Tensor]:
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


def running_prototypes(batches: Iterable[tuple[Tensor, Tensor]], old_prototypes: Tensor, num_classes: int) -> Tensor:
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
    new = (total / torch.as_tensor(seen).clamp(min=1))[old:]
    return torch.cat([old_prototypes.to(new), new]) if old else new


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
    new = new_pixels(target, known)
    with torch.autocast(logits.device.type, enabled=False):
        cosines = (
            functional.normalize(prototypes.float(), dim=1) @ functional.normalize(old_prototypes.float(), dim=1).T
        )
    similarity = cosines.softmax(1)
    similarity = similarity.masked_fill(similarity < delta / known, 0.0)

    # All pixels are computed, and those of other classes left out: which ones are new is known on the device alone, and
    # a mask as an index would make a GPU wait.
    def cost(logits: Tensor, old_logits: Tensor, target: Tensor) -> Tensor:
        # With z the logits and w the weights -sum w (z - log sum exp z), without keeping log-probabilities.
        scaled, new = logits[:, :known] / temperature, new_pixels(target, known)
        weights = (old_logits.float() / temperature).softmax(1) * similarity[target.masked_fill(~new, 0)] + 1e-7
        loss = weights.sum(1) * scaled.logsumexp(1) - (weights * scaled).sum(1)
        return loss.masked_fill(~new, 0.0)

    return temperature**2 * sum_over_pixels(cost, logits, old_logits, target) / new.sum().clamp(min=1)


class REMINDER(PLOP):
    """PLOP, and a distillation on new classes' pixels that keeps what the old classes similar to them looked like."""

    name = "reminder"
    Options = REMINDEROptions
    options: REMINDEROptions
    shared_base = False  # it measures the prototypes of step 0's classes
    micro_batches = False  # a prototype is the mean over the whole batch's pixels
    prototypes: Tensor | None = None  # (C, D) of all classes of the steps before, from the decoder's map

    # Step 0 is plain cross-entropy: PLOP's part begins with step 1.

    def initialise(self, context: StepContext) -> None:
        """Start the new classes from the background, as PLOP does."""
        if context.previous is not None:
            super().initialise(context)

    def before_training(self, context: StepContext, batches: Iterable[Batch]) -> None:
        """Measure PLOP's thresholds."""
        if context.previous is not None:
            super().before_training(context, batches)

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return PLOP's terms and the class-similarity distillation."""
        if previous is None:
            return {"cross_entropy": cross_entropy(output.logits, batch.target, self.options.void_in_mean)}
        terms = super().losses(batch, output, previous, context)
        if self.prototypes is None or len(self.prototypes) != context.old_classes:
            raise MethodError(
                f"reminder has no prototypes of the {context.old_classes} classes before step {context.step}.",
                hint="Train the steps before with reminder, too: it measures them after the training of each.",
            )
        # A pseudo-label is an old class or void, so that the pixels of new classes are those of the given labels.
        new = range(context.old_classes, context.num_classes)
        found = class_sums(output.stages[-1].detach(), batch.target, new, context.num_classes)
        sums, pixels = map(context.batch_sum, found)
        options = self.options
        similar = class_similarity_distillation(
            output.logits, previous.logits, batch.target, sums / pixels.clamp(min=1), self.prototypes,
            options.delta, options.temperature,
        )  # fmt: skip
        return {**terms, "class_similarity": options.class_similarity * similar}

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """The class-similarity distillation is a mean over the pixels of new classes."""
        if previous is None:
            return {} if self.options.void_in_mean else {"cross_entropy": labelled_pixels(batch.target)}
        counts = super().counts(batch, previous, context)
        return {**counts, "class_similarity": new_pixels(batch.target, context.old_classes).sum()}

    def after_training(self, context: StepContext) -> None:
        """Measure the new classes' prototypes in one pass over the step's images; old ones stay."""
        old = torch.zeros(0, 0) if self.prototypes is None else self.prototypes
        maps = ((context.model(*batch.inputs).stages[-1], batch.target) for batch in context.batches())
        self.prototypes = running_prototypes(maps, old, context.num_classes)

    def state_dict(self) -> dict[str, Tensor]:
        """Return PLOP's thresholds and the prototypes."""
        state = super().state_dict()
        return state if self.prototypes is None else {**state, "prototypes": self.prototypes}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore them."""
        super().load_state_dict(state)
        self.prototypes = state.get("prototypes")
