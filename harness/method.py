"""The contract of a method: what a network step is asked, in which order, and what it may touch.

For every step the harness grows the model by the step's classes and then calls

1. ``initialise(context)``: set the new classes' parameters (the model has grown, nothing is trained yet);
2. ``before_training(context, batches)``: optional pass over the step's training batches (thresholds, statistics);
3. ``losses(batch, output, previous, context)``: for every batch, named terms whose sum is minimised;
4. ``after_training(context)``: optional, before the step's weights are published.

A batch may be shared by several devices, or cut into parts for want of memory. ``losses`` then sees a part at a time
and each term is put together as a mean over the images, or over what ``counts(batch, previous, context)`` counts.

A method never touches the optimiser, files, devices, other processes or the test images. ``cispbench method check
NAME`` holds an installed method against this contract, rule by rule (``harness/contract/``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cispbench.harness.models.output import Output
from cispbench.splits.settings import Setting

if TYPE_CHECKING:
    from torch import Tensor

    from cispbench.harness.models.interface import IncrementalModel

__all__ = ["VOID", "Batch", "Method", "NoOptions", "Output", "StepContext"]

VOID = 255


@dataclass(frozen=True)
class Batch:
    """Training images of one step with their labels.

    ``images``: float32 (B, 3, H, W), normalised. ``target``: int64 (B, H, W); 0 background, from ``old_classes``
    upwards the step's own classes in order of learning, 255 void. ``ids``: the B image names.
    """

    images: Tensor
    target: Tensor
    ids: tuple[str, ...]

    def to(self, device: Any) -> Batch:
        """Return the batch with both tensors on ``device`` (asynchronously where memory is pinned)."""
        return Batch(self.images.to(device, non_blocking=True), self.target.to(device, non_blocking=True), self.ids)


@dataclass(frozen=True)
class StepContext:
    """What a method may know of the step it serves.

    ``old_classes`` counts the classes known before the step, background included (0 at step 0);
    ``new_classes`` counts those the step adds (background included at step 0); ``num_classes`` is their sum.
    """

    setting: Setting
    step: int
    old_classes: int
    new_classes: int
    model: IncrementalModel
    previous: IncrementalModel | None

    @property
    def num_classes(self) -> int:
        """All classes known at the end of the step, background included."""
        return self.old_classes + self.new_classes


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


class Method(ABC):
    """A way of learning a step; see the module's docstring for the order of the calls.

    ``name`` is the entry point's name, ``version`` is raised whenever results may change (it is part of every
    step's key). ``joint``: the method learns all classes in a single step, with full labels. ``shared_base``: step
    0 is plain cross-entropy without the method's options, so its base model serves every such method.
    ``Options`` is a frozen dataclass: the recipe's ``method`` section is read into it, strictly.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    joint: ClassVar[bool] = False
    shared_base: ClassVar[bool] = True
    Options: ClassVar[type[Any]] = NoOptions

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    def unsupported(self, setting: Setting, model: str) -> str | None:
        """Return why the method cannot serve this setting with this model, or None if it can."""
        return None

    def initialise(self, context: StepContext) -> None:  # noqa: B027 (optional)
        """Set the parameters of the classes that the step adds; by default they stay as the model made them."""

    def before_training(self, context: StepContext, batches: Iterable[Batch]) -> None:  # noqa: B027 (optional)
        """Measure what the step needs; ``batches`` is one pass over its training data (read only when iterated)."""

    @abstractmethod
    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the loss's terms by name, each a differentiable scalar, already weighted.

        ``previous`` is the previous model's output for the same images (without gradients), None at step 0.
        """

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """Return over how many things a term of ``losses`` is a mean, by its name; 0 where it is 0 for want of any.

        Asked only where a batch is worked through in parts, whose terms are then weighted by these counts. What is
        not named is a mean over the batch's images, each counting the same (the mean over all pixels is one, for
        images of a batch have one size). Not so a mean over labelled pixels: void is unevenly spread over the parts.
        The names depend on the step alone.
        """
        return {}

    def after_training(self, context: StepContext) -> None:  # noqa: B027 (optional)
        """Finish the step, before its weights are published."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed step, or the next step, needs besides the model.

        Thresholds or importances, for example. They are kept in checkpoints and published with the step.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 (optional)
        """Take back what ``state_dict`` returned: on a resume, and before ``initialise`` what the step before left."""
