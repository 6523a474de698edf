"""The contract of a method: which functions it implements, when the harness calls them, and what it must not touch.

A method is a subclass of ``Method``. One instance learns the steps of a run in order. In each step the harness builds
the model as the step before left it, keeps a frozen copy of it as ``context.previous`` (None in step 0), adds the
step's classes to ``context.model``, and then calls

1. ``load_state_dict(state)``: what ``state_dict`` returned at the end of the step before (not called in step 0);
2. ``initialise(context)``: set the parameters of the new classes;
3. ``before_training(context, batches)``: one pass over the step's training data, for thresholds or statistics;
4. ``losses(batch, output, previous, context)``: in each iteration, the named terms whose sum is minimised;
5. ``after_training(context)``: a last change, before the step's weights are stored;
6. ``state_dict()``: the tensors that the next step needs besides the weights. It is also called for each checkpoint.

Only ``losses`` must be implemented. The calls 1 and 2 are in ``harness/runs/step_work.py``, the calls 3, 4 and 5 in
``harness/training/loop.py``, that of ``counts`` in ``harness/training/micro_batches.py``, the call 6 in
``harness/runs/execute.py`` and, for checkpoints, in ``harness/training/checkpoint.py``.

A step that is resumed from a checkpoint has a new instance. It is called in the order 1, 2, then ``load_state_dict``
with the state of the checkpoint, then 4 to 6. ``before_training`` is not called again: its results belong in the state.
On several devices, too, one process calls ``before_training``, and the others get its state.

Shapes (B images of H x W pixels, C classes known so far, O of them before the step): ``batch.images`` (B, 3, H, W),
``batch.target`` (B, H, W), ``output.logits`` (B, C, H, W), ``previous.logits`` (B, O, H, W). ``previous`` is the
previous model's output for the same images, computed without gradients. ``harness/models/output.py`` lists all fields.

A method may read everything that it is given. It may write to

- the parameters of the new classes, and the background's bias, in ``initialise``;
- the model's parameters in ``after_training``;
- its own attributes, if ``state_dict`` returns all that later calls depend on.

It must not change the batch, the previous model or its output; in ``losses`` it must not change the model, call
``backward()``, ``train()`` or ``eval()``. It never touches the optimiser, files, devices, other processes or the test
images. Random numbers come from the global RNGs of torch, NumPy or Python, which the harness seeds.

With ``--devices`` or ``--micro-batch`` each batch is cut into parts. ``losses`` is then called once for each part, and
the harness puts each term together as a weighted mean; ``Method.counts`` says how.

``cispbench method check NAME`` checks an installed method against this contract, rule by rule (``harness/contract/``);
``cispbench method new NAME`` writes a working method to start from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cispbench.harness.models.output import Output
from cispbench.splits.ranges import Range
from cispbench.splits.settings import Setting

if TYPE_CHECKING:
    from torch import Tensor

    from cispbench.harness.models.interface import IncrementalModel

__all__ = ["VOID", "Batch", "Method", "NoOptions", "Output", "Range", "StepContext"]

VOID = 255


@dataclass(frozen=True)
class Batch:
    """Training images of one step with their labels.

    ``images``: float32 (B, 3, H, W), normalised. ``target``: int64 (B, H, W); 0 is background, ``old_classes`` and the
    numbers above it are the step's own classes in the order of learning, 255 is void (ignored). Old and future classes
    are labelled as background. ``ids``: the B image names.
    """

    images: Tensor
    target: Tensor
    ids: tuple[str, ...]

    def to(self, device: Any) -> Batch:
        """Return the batch with both tensors on ``device`` (asynchronously where memory is pinned)."""
        return Batch(self.images.to(device, non_blocking=True), self.target.to(device, non_blocking=True), self.ids)


@dataclass(frozen=True)
class StepContext:
    """What a method may know of the step that is trained.

    ``step``: its index, from 0. ``old_classes``: the number of classes known before the step, background included (0
    in step 0). ``new_classes``: the number of classes that the step adds (background included in step 0). The logits'
    channels are therefore background, the other old classes, then the new classes from ``old_classes`` on. ``model``
    is trained; ``previous`` is the frozen model of the step before, None in step 0.
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
    """A way of learning a step; the module's docstring has the order of the calls.

    ``name``: the name of the entry point. ``version``: part of every step's key; raise it whenever results may change.
    Of methods of other packages the digest of the code is part of the key, too (``harness/runs/method_code.py``).
    ``joint``: the method learns all classes in a single step, with full labels. ``shared_base``: step 0 is plain
    cross-entropy, whatever the options, and leaves no state, so that all such methods share one base model.
    ``Options``: a frozen dataclass; the recipe's section ``method`` is read into it, and an unknown key is an error. A
    field of the type ``Annotated[float, Range(least=0)]`` takes numbers of that range alone.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    joint: ClassVar[bool] = False
    shared_base: ClassVar[bool] = True
    Options: ClassVar[type[Any]] = NoOptions

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    def unsupported(self, setting: Setting, model: str) -> str | None:
        """Return why the method cannot be used for this setting with this model, or None if it can."""
        return None

    def initialise(self, context: StepContext) -> None:  # noqa: B027 (optional)
        """Set the parameters of the new classes, the last of ``context.model.class_groups()``.

        By default they stay as the model initialised them. All shapes must stay. Of the other parameters at most the
        background's bias may change.
        """

    def before_training(self, context: StepContext, batches: Iterable[Batch]) -> None:  # noqa: B027 (optional)
        """Measure what the step needs in one pass over its training data; ``batches`` is read when iterated."""

    @abstractmethod
    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the terms of the loss by name, each a differentiable scalar tensor with its weight included.

        The harness minimises their sum and logs each (``StepTraining.iterate`` in ``harness/training/loop.py``).
        ``output`` is the model's output for ``batch.images``, ``previous`` the previous model's (without gradients),
        None in step 0. A batch may consist of void alone or of background alone, or hold a single image: every term
        must be finite then, too.
        """

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """Return how many things each term of ``losses`` is a mean over, by the term's name.

        The harness asks only if it cuts a batch into parts. It then computes each term as the weighted mean over the
        parts: sum of (term x count) / sum of counts. A term that is not named is weighted by the number of images.

        Example: a batch of 4 images is cut into 2 parts of 2 images. The first part has 100 labelled pixels, the
        second has 300; the other pixels are void.

        - ``cross_entropy`` is a mean over labelled pixels: 2.0 in the first part, 1.0 in the second. In the whole batch
          it is (2.0 x 100 + 1.0 x 300) / 400 = 1.25. The weights are the numbers of labelled pixels: return
          ``{"cross_entropy": labelled_pixels(batch.target)}``.
        - ``distillation`` is a mean over all pixels: 2.0 and 1.0. All images of a batch have one size, so both parts
          have equally many pixels, and the batch's mean is (2.0 x 2 + 1.0 x 2) / 4 = 1.5. The weights are the numbers
          of images: leave the name out.

        Return 0 for a part in which a term is 0 because it has nothing to average, such as a part of void alone. The
        names must be the same for every batch of a step.
        """
        return {}

    def after_training(self, context: StepContext) -> None:  # noqa: B027 (optional)
        """Finish the step, before its weights are stored; the model's parameters may change."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed step, or the next step, needs besides the model's weights.

        Thresholds or importances, for example. Each needs memory of its own. They are stored in checkpoints and with
        the step's weights.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 (optional)
        """Restore what ``state_dict`` returned: before ``initialise`` that of the step before, on a resume also that of
        the checkpoint.
        """
