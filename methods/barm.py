"""BARM: Background Adaptation with Residual Modeling for Exemplar-Free CISS (Zhang and Gao, ECCV 2024).

Released code: github.com/ANDYZAQ/BARM at 0a59203.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cispbench.harness.machine.lazy import functional, torch
from cispbench.harness.method import Batch, Group, Method, Output, StepContext
from cispbench.methods.losses import VOID, Probability, Weight, bce_with_ignore, labelled_pixels
from cispbench.methods.ssul import pseudo_labels
from cispbench.splits.settings import Setting

if TYPE_CHECKING:
    from torch import Tensor

FEATURES = "branch_features"


@dataclass(frozen=True)
class BARMOptions:
    """BARM's options: the threshold of pseudo-labels, the weights of the terms, and two switches of the release.

    ``ear_statistics``: the norm of a new branch has "fresh" statistics (mean 0, variance 1), or those of the first
    branch, "copied" as its weights are. ``upsample``: what is up-sampled for a prediction.
    """

    threshold: Probability = 0.7
    triplet: Weight = 5.0
    feature: Weight = 4.0
    group: Weight = 1.0
    background: Weight = 1.0
    ear_statistics: Literal["fresh", "copied"] = "fresh"
    upsample: Literal["probabilities", "logits"] = "probabilities"


def join_heads(heads: Sequence[Tensor], training: bool) -> Tensor:
    """Return the logits (B, C, h, w) of all heads, whose background residuals only lower the background.

    The first head is (B, n_0, h, w), background and base classes; later ones (B, 1 + n_s, h, w), the residual first.
    Positive residuals count as 0. In ``training`` background and older residuals are detached, and the newest is added
    as it is. Source: BARM's network/_deeplab.py:128-189, DeepLabHeadBgA.
    """
    first, *later = heads
    background = first[:, :1]
    residuals = [head[:, :1] for head in later]
    if training and residuals:
        background = background.detach() + sum(residual.detach().clamp(max=0) for residual in residuals[:-1])
        background = background + residuals[-1]
    else:
        background = background + sum(residual.clamp(max=0) for residual in residuals)
    return torch.cat([background, *(head[:, 1:] for head in heads)], 1)


def terms(
    heads: Sequence[Tensor],
    features: Sequence[Tensor],
    old_heads: Sequence[Tensor],
    old_features: Sequence[Tensor],
    target: Tensor,
    threshold: float = 0.7,
) -> dict[str, Tensor]:
    """Return the unweighted terms of a step's loss by name.

    ``heads`` as in ``join_heads``, ``features`` (B, D, h, w) the maps that they read; those of the previous model are
    one fewer. ``target`` (B, H, W) holds the step's own labels. On cells with a new class the newest residual is
    pushed down (``background``), on background cells above 0 (``triplet``, 0 without such cells); there, too, the older
    features are held (``feature``), and everywhere the older heads' probabilities (``group``). Source: BARM's
    trainer/trainer.py:244-308.
    """
    new_cells, background_cells = (_on_grid(mask, heads[0]) for mask in cells(target))
    residual = heads[-1][:, :1].float()
    pushed = functional.softplus(residual) * new_cells
    pulled = (1 - 2 * residual.sigmoid()).clamp(min=0) * background_cells
    return {
        "cross_entropy": _cross_entropy(heads, old_heads, target, threshold),
        "triplet": pulled.sum() / background_cells.sum().clamp(min=1),
        "feature": _feature_distance(features, old_features, background_cells),
        "group": _group_distance(heads, old_heads),
        "background": pushed.sum() / (new_cells.sum() + 1e-8),
    }


def cells(target: Tensor) -> tuple[Tensor, Tensor]:
    """Return where ``target`` (B, H, W) shows a class, and where background."""
    return (target != 0) & (target != VOID), target == 0


def prediction(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the classes (B, H, W) of logits (B, C, h, w): probabilities are up-sampled to ``size``, not logits.

    Source: BARM's trainer/trainer.py, validate.
    """
    return _upsampled(logits.float().sigmoid(), size).argmax(1)


def _cross_entropy(heads: Sequence[Tensor], old_heads: Sequence[Tensor], target: Tensor, threshold: float) -> Tensor:
    """Return the binary cross-entropy on pseudo-labelled targets, of which old classes learn nothing."""
    logits = _upsampled(join_heads(heads, training=True).float(), target.shape[-2:])
    old_logits = _upsampled(join_heads(old_heads, training=False).float(), target.shape[-2:])
    new = heads[-1].shape[1] - 1
    logits = torch.cat([logits[:, :1], logits[:, 1:-new].detach(), logits[:, -new:]], 1)
    return bce_with_ignore(logits, pseudo_labels(target, old_logits, threshold, background=0))


def _feature_distance(features: Sequence[Tensor], old_features: Sequence[Tensor], where: Tensor) -> Tensor:
    pairs = zip(features[: len(old_features)], old_features, strict=True)
    return torch.stack([(((new.float() - old.float()) * where) ** 2).mean() for new, old in pairs]).sum()


def _group_distance(heads: Sequence[Tensor], old_heads: Sequence[Tensor]) -> Tensor:
    pairs = zip(heads[: len(old_heads)], old_heads, strict=True)
    return torch.stack([_per_channel(new.float(), old.float().sigmoid()) for new, old in pairs]).sum()


def _per_channel(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return the binary cross-entropy, a mean over positions and images, summed over channels."""
    cost = functional.binary_cross_entropy_with_logits(logits, probabilities, reduction="none")
    return cost.mean((0, 2, 3)).sum()


def _on_grid(mask: Tensor, head: Tensor) -> Tensor:
    return functional.interpolate(mask[:, None].float(), size=head.shape[-2:], mode="nearest")


def _upsampled(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class BARM(Method):
    """Residuals of the background, one a step, learnt in branches of their own beside old ones that are held."""

    name = "barm"
    shared_base = False  # step 0 has a binary cross-entropy
    Options = BARMOptions
    options: BARMOptions
    needs = frozenset({FEATURES})

    def layout(self, setting: Setting, step: int) -> tuple[Group, ...]:
        """Add a branch whose first channel, from step 1 on, is the residual of the background."""
        return (Group(setting.new_classes(step), extra=int(step > 0)),)

    def initialise(self, context: StepContext) -> None:
        """Start the features of the new branch from those of the first one."""
        if context.step == 0:
            return
        first, *_, new = (group.branch.features for group in context.model.class_groups())
        state = first.state_dict()
        if self.options.ear_statistics == "fresh":
            state = {name: tensor for name, tensor in state.items() if "running" not in name}
        new.load_state_dict(state, strict=False)

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the binary cross-entropy and, from step 1 on, the four terms on residuals, features and old heads."""
        if previous is None:
            return {"cross_entropy": bce_with_ignore(output.logits, batch.target)}
        options = self.options
        found = terms(
            output.heads, output.extras[FEATURES], previous.heads, previous.extras[FEATURES], batch.target,
            options.threshold,
        )  # fmt: skip
        weights = {
            "cross_entropy": 1.0, "triplet": options.triplet, "feature": options.feature, "group": options.group,
            "background": options.background,
        }  # fmt: skip
        return {name: weights[name] * term for name, term in found.items()}

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """Count labelled pixels, and the cells over which residuals are means."""
        counts: dict[str, Tensor | int] = {"cross_entropy": labelled_pixels(batch.target)}
        if previous is not None:
            for name, mask in zip(("background", "triplet"), cells(batch.target), strict=True):
                counts[name] = _on_grid(mask, previous.heads[0]).sum()
        return counts

    def scores(self, output: Output) -> Tensor:
        """Return the joined classes' probabilities, up-sampled from the grid (or their logits)."""
        logits, size = join_heads(output.heads, training=False).float(), output.logits.shape[-2:]
        return _upsampled(logits if self.options.upsample == "logits" else logits.sigmoid(), size)
