"""SSUL: Semantic Segmentation with Unknown Label (Cha et al., NeurIPS 2021), and SSUL-M, which keeps exemplars.

Released code: github.com/clovaai/SSUL at e08ee9c. It goes on from the iteration whose network does best on the test
images, and tests that one; here a step ends with its last iteration.

The network has one channel more than classes. In *channels*: 0 unknown, 1 background, k + 1 class k; 255 is void. The
unknown channel learns what is no class yet, and a new class starts from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from cispbench.harness.machine.lazy import torch
from cispbench.harness.method import (
    Batch,
    Companion,
    Exemplar,
    Group,
    Memory,
    Method,
    Output,
    Range,
    StepContext,
)
from cispbench.methods.losses import VOID, Probability, bce_with_ignore, each_pixel, labelled_pixels
from cispbench.methods.memory import list_candidates, presence, take_turns
from cispbench.splits.settings import Setting

if TYPE_CHECKING:
    from torch import Tensor

Unknown = Literal["saliency", "background", "none"]


@dataclass(frozen=True)
class SSULOptions:
    """SSUL's options.

    ``unknown``: which background pixels are labelled unknown: those of the saliency maps, all, or "none"; then the
    channel learns to answer no everywhere. ``threshold``: the probability from which on the previous network labels a
    pixel. ``branch_init``: new classes start from the branch of unknown.
    """

    unknown: Unknown = "saliency"
    pseudo_labels: bool = True
    threshold: Probability = 0.7
    branch_init: bool = True


@dataclass(frozen=True)
class SSULMOptions(SSULOptions):
    """SSUL-M's options: ``memory`` is the number of images that are kept.

    ``memory_labels``: the released code gives the labels of these images without the shift by one that makes room for
    the unknown channel: their background trains the unknown channel, and class k the channel of class k - 1.
    """

    memory: Annotated[int, Range(least=1, most=1_000_000)] = 100
    memory_labels: Literal["unshifted", "shifted"] = "unshifted"


def with_unknown(target: Tensor, unknown: Tensor) -> Tensor:
    """Return the labels in channels: background that is ``unknown`` becomes 0, other background 1, class k k + 1.

    ``target``: int64 of any shape, in the order of learning, void (255) kept. ``unknown``: bool of that shape, read
    on background alone. Source: clovaai/SSUL, datasets/voc.py, __getitem__.
    """
    channels = torch.where(target == VOID, VOID, target + 1)
    return channels.masked_fill((target == 0) & unknown, 0)


def pseudo_labels(target: Tensor, old_logits: Tensor, threshold: float = 0.7, background: int = 1) -> Tensor:
    """Label pixels of no class where the previous model is sure of an old class.

    ``target`` (B, H, W) in channels, ``old_logits`` (B, O + 1, H, W). A pixel up to ``background``, the highest
    channel that is no class (0 in BARM, which has no unknown channel), takes the channel of the largest sigmoid if
    that is a class and its probability reaches ``threshold``. Source: clovaai/SSUL, main.py, train.
    """

    def labels(old_logits: Tensor, target: Tensor) -> Tensor:
        probability, channel = old_logits.sigmoid().max(1)
        sure = (target <= background) & (channel > background) & (probability >= threshold)
        return torch.where(sure, channel, target)

    return each_pixel(labels, old_logits, target)


def class_scores(logits: Tensor) -> Tensor:
    """Return the classes' scores (B, C, H, W) from ``logits`` (B, C + 1, H, W): background gets unknown's, too.

    The sum of the two probabilities may exceed 1; a class wins only where it is above the sum.
    Source: clovaai/SSUL, main.py, validate.
    """
    scores = logits.float().sigmoid()
    return torch.cat([scores[:, :1] + scores[:, 1:2], scores[:, 2:]], 1)


def prediction(logits: Tensor) -> Tensor:
    """Return the predicted classes (B, H, W), 0 background, from ``logits`` (B, C + 1, H, W)."""
    return class_scores(logits).argmax(1)


def random_orders(candidates: Sequence[int], old_classes: int) -> tuple[list[int], list[int]]:
    """Return the candidates and the old classes without background, both shuffled by NumPy's generator of seed 1.

    The released code sets this seed before every step, so that the choice depends on the candidates alone. Source:
    clovaai/SSUL, main.py, main and utils/memory.py.
    """
    random = np.random.RandomState(1)
    tried, turns = list(candidates), list(range(1, old_classes))
    random.shuffle(tried)
    random.shuffle(turns)
    return tried, turns


def select_exemplars(
    presence: Tensor, order: Sequence[int] | Tensor, class_order: Sequence[int] | Tensor, size: int
) -> list[int]:
    """Choose up to ``size`` images that show all old classes about equally often.

    ``presence``: bool (n, O); ``order``: rows of it, the candidates in the order in which they are tried;
    ``class_order``: the old classes without background; both may be int64 tensors. Returns rows, grouped by class. See
    ``take_turns``.
    """
    tried, turns = torch.as_tensor(order).tolist(), torch.as_tensor(class_order).tolist()
    rows = presence[tried].tolist()
    label_sets = [{label for label, shown in enumerate(row) if shown} for row in rows]
    return [tried[position] for position in take_turns(label_sets, turns, size)]


class SSUL(Method):
    """Unknown pixels have a channel of their own, from which new classes start; all that is old is frozen.

    What is frozen, and the rates of the branches of unknown, background and new classes, are in the recipe.
    """

    name = "ssul"
    shared_base = False
    needs = frozenset({"branches"})
    Options = SSULOptions
    options: SSULOptions

    def layout(self, setting: Setting, step: int) -> tuple[Group, ...]:
        """Return branches for unknown, for background, and for the classes of each step."""
        if step > 0:
            return (Group(setting.new_classes(step)),)
        return Group(extra=1, role="unknown"), Group(1, role="background"), Group(setting.new_classes(0) - 1)

    def companions(self, setting: Setting) -> tuple[Companion, ...]:
        """Return the saliency maps, where they say what is unknown: any value above 0 is salient."""
        if self.options.unknown != "saliency":
            return ()
        how = "The authors of SSUL publish them (github.com/clovaai/SSUL); --set method.unknown=background needs none."
        return (Companion("saliency", "saliency_map", fill=0, how_to_get=how),)

    def initialise(self, context: StepContext) -> None:
        """Copy the branch of unknown into that of the new classes, its norm's statistics, too."""
        if context.step > 0 and self.options.branch_init:
            unknown, *_, new = context.model.class_groups()
            new.start_from(unknown)

    def prepare(self, batch: Batch, context: StepContext) -> Batch:
        """Return the batch with its labels in channels."""
        return replace(batch, target=self._channels(batch, context))

    def _channels(self, batch: Batch, context: StepContext) -> Tensor:
        if self.options.unknown == "saliency":
            return with_unknown(batch.target, batch.companions["saliency"] > 0)
        return with_unknown(batch.target, torch.full_like(batch.target, self.options.unknown == "background").bool())

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the binary cross-entropy over all channels, with pseudo-labels from step 1 on."""
        target = batch.target
        if previous is not None and self.options.pseudo_labels:
            target = pseudo_labels(target, previous.logits, self.options.threshold)
        return {"binary_cross_entropy": bce_with_ignore(output.logits, target)}

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """Count the labelled pixels; pseudo-labels never change which are void."""
        return {"binary_cross_entropy": labelled_pixels(batch.target)}

    def scores(self, output: Output) -> Tensor:
        """Return the classes' probabilities; background's has unknown's added."""
        return class_scores(output.logits)


class SSULM(SSUL):
    """SSUL with a memory: half of each batch are images of earlier steps with the labels of all classes so far."""

    name = "ssul_m"
    Options = SSULMOptions
    options: SSULMOptions

    def memory(self) -> Memory:
        """Return how exemplars are used: in the place of half of each batch."""
        return Memory(self.options.memory, "replace", share=0.5, labels="seen", view="centre")

    def select_exemplars(
        self, images: Iterable[Batch], kept: Sequence[Exemplar], context: StepContext
    ) -> list[Exemplar]:
        """Choose so that all old classes are shown; what was kept comes first, with the classes noted then."""
        candidates = list_candidates(kept, images, lambda batch: self._shown(batch, context), context.step - 1)
        table = [[label in candidate.classes for label in range(context.old_classes)] for candidate in candidates]
        order, class_order = random_orders(range(len(candidates)), context.old_classes)
        chosen = select_exemplars(torch.tensor(table), order, class_order, self.options.memory)
        return [candidates[row] for row in chosen]

    def _shown(self, batch: Batch, context: StepContext) -> Tensor:
        target = with_unknown(batch.target, batch.target == 0)
        if context.step > 1 and context.previous is not None:
            target = pseudo_labels(target, context.previous(*batch.inputs).logits, self.options.threshold)
        return presence(target, context.old_classes)

    def _channels(self, batch: Batch, context: StepContext) -> Tensor:
        channels = super()._channels(batch, context)
        if context.step == 0:
            return channels
        assert batch.origin is not None  # a method with a memory is given it
        # Saliency is not used for exemplars: their background is no unknown.
        shifted = self.options.memory_labels == "shifted"
        kept = with_unknown(batch.target, torch.zeros_like(batch.target).bool()) if shifted else batch.target
        return torch.where((batch.origin < context.step)[:, None, None], kept, channels)
