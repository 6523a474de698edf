"""The contract of a method: which functions it implements, when the harness calls them, and what it must not touch.

A method is a subclass of ``Method``. One instance learns the steps of a run in order. Only ``losses`` must be
implemented; every other hook has a default that does nothing.

Declarations are asked before anything is built. They are pure functions of the options: ``unsupported``, ``layout``,
``phases``, ``companions``, ``memory``.

In each step the harness builds the network as the step before left it, keeps a frozen copy of it as
``context.previous`` (None in step 0), adds the groups of ``layout`` to ``context.model``, and then calls

1. ``load_state_dict(state)``: what ``state_dict`` returned at the end of the step before (not called in step 0);
2. ``select_exemplars(images, kept, context)``: from step 1 on, if the method has a memory;
3. ``initialise(context)``: set the parameters of the new classes;
4. for each of ``phases`` (usually one, "train"), with an optimiser of its own:
   ``before_training(context, batches)``: measure what the phase needs; then in every iteration
   ``prepare(batch, context)``, ``losses(batch, output, previous, context)``, whose named terms are summed and
   minimised, and ``after_gradients(gradients, context)`` before the update; then
   ``after_training(context)``: measure, or edit the weights;
5. ``state_dict()``: the tensors that the next step needs besides the weights. Checkpoints ask for them, too.

``scores(output)`` gives the prediction, for tests and wherever masks are made.

The call 1 is in ``harness/runs/step_work.py``, 2 in ``harness/runs/exemplar_choice.py``, 3 and those around the
iterations of 4 in ``harness/training/hooks.py``, those within them in ``harness/training/iteration.py``. A step that is
resumed from a checkpoint has a new instance: it is given the state of the checkpoint, and no hook that is finished is
called again. All that lasts must therefore be in ``state_dict``.

With ``shared_base`` the harness trains step 0 itself, with plain cross-entropy: the method is not asked.

The hooks outside the iterations (2, 3, ``before_training``, ``after_training``) run on one device, with the networks in
evaluation mode, without gradients, and under autocast; the other devices get the result. They may read
``context.batches()``. The hooks of an iteration run on all devices.

Shapes (B images of H x W pixels, C classes known so far, O of them before the step): ``batch.images`` (B, 3, H, W),
``batch.target`` (B, H, W), ``output.logits`` (B, C, H, W), ``previous.logits`` (B, O, H, W). ``previous`` is the
previous model's output for the same images, computed without gradients. ``harness/step.py`` and
``harness/models/output.py`` list all fields.

A method may read everything that it is given. It may write to

- the network, in ``initialise`` and ``after_training`` alone, and all shapes must stay;
- the gradients, in ``after_gradients``;
- its own attributes, in these hooks and in ``before_training``; in ``losses`` only with ``micro_batches = False``.

It must not change the batch, the previous model or its output; in ``losses`` it must not change the model, call
``backward()``, ``train()`` or ``eval()``. It never touches the optimiser, files, devices, other processes or the test
images. Random numbers come from the global RNGs of torch, NumPy or Python, which the harness seeds, or from
``context.generator``.

All tensors lie on the device that trains. What a method makes lies beside them, and no hook of an iteration, nor
``scores``, reads a value from a GPU or copies one to it, for which it would wait: by ``item()``, by a mask as an index,
by a tensor made of a list (docs/add-method.md).

With ``--devices`` or ``--micro-batch`` each batch is cut into parts. ``losses`` is then called once for each part, and
the harness puts each term together as a weighted mean; ``Method.counts`` says how.

A number belongs to the recipe, a structure to the network, a definition to the method: learning rates, decay and what
is frozen are recipe; branches and channels are network.

``docs/mechanisms.md`` shows each mechanism by a short example.
``cispbench method check NAME`` checks an installed method against this contract, rule by rule (``harness/contract/``);
``cispbench method new NAME`` writes a working method to start from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cispbench.harness.models.groups import Group
from cispbench.harness.models.output import Output
from cispbench.harness.step import TRAIN, Batch, Companion, Exemplar, Memory, StepContext
from cispbench.splits.ranges import Range
from cispbench.splits.settings import VOID, Setting

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "VOID", "Batch", "Companion", "Exemplar", "Group", "Memory", "Method", "NoOptions", "Output", "Range",
    "StepContext",
]  # fmt: skip


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


class Method(ABC):
    """A way of learning a step; the module's docstring has the order of the calls.

    ``name``: the name of the entry point. ``version``: part of every step's key; raise it whenever results may change.
    Of methods of other packages the digest of the code is part of the key, too (``harness/runs/method_code.py``).
    ``joint``: the method learns all classes in a single step, with full labels. ``shared_base``: step 0 is plain
    cross-entropy, which the harness trains, so that all such methods share one base model.
    ``Options``: a frozen dataclass; the recipe's section ``method`` is read into it, and an unknown key is an error. A
    field of the type ``Annotated[float, Range(least=0)]`` takes numbers of that range alone.

    ``needs``: what the network must offer (``ModelSpec.offers``), such as "branches". ``reads_previous``: False if
    ``losses`` needs no output of the previous network; it is then given None, and the pass is spared.
    ``micro_batches``: False if a term needs the whole batch, so that ``--micro-batch`` is refused. ``devices``: False
    if a term needs the whole batch on one device, so that ``--devices`` is refused, too.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    joint: ClassVar[bool] = False
    shared_base: ClassVar[bool] = True
    Options: ClassVar[type[Any]] = NoOptions
    needs: ClassVar[frozenset[str]] = frozenset()
    reads_previous: ClassVar[bool] = True
    micro_batches: ClassVar[bool] = True
    devices: ClassVar[bool] = True

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    # Declarations: pure functions of the options and their arguments.

    def unsupported(self, setting: Setting, model: str) -> str | None:
        """Return why the method cannot be used for this setting with this model, or None if it can."""
        return None

    def layout(self, setting: Setting, step: int) -> tuple[Group, ...]:
        """Return the groups of channels that ``step`` adds to the head; by default one, of the step's classes.

        A method with channels that are no classes needs its own ``scores``.
        """
        return (Group(setting.new_classes(step)),)

    def phases(self, setting: Setting, step: int) -> tuple[str, ...]:
        """Return the names of the step's optimisations, in order; by default one, "train".

        Each may have a section ``phases.<name>`` of the recipe, which replaces fields of the step's.
        """
        return (TRAIN,)

    def companions(self, setting: Setting) -> tuple[Companion, ...]:
        """Return the maps that are read beside the images (``batch.companions``)."""
        return ()

    def memory(self) -> Memory | None:
        """Return how exemplars are kept and used, None without any."""
        return None

    # The hooks of a step, in the order of the calls.

    def select_exemplars(
        self, images: Iterable[Batch], kept: Sequence[Exemplar], context: StepContext
    ) -> list[Exemplar]:
        """Choose the memory of this step from ``kept``, that of the step before, and the images of that step.

        ``images`` has every image of that step once, in the order of its list, labelled as in that step.
        ``context.previous`` is its model. At most ``memory().size`` exemplars are returned.
        """
        raise NotImplementedError(f"{self.name} has a memory and must say what is kept in it: select_exemplars")

    def initialise(self, context: StepContext) -> None:  # noqa: B027 (optional)
        """Set the parameters of the new classes, the last of ``context.model.class_groups()``.

        By default they stay as the network initialised them. All shapes must stay.
        """

    def before_training(self, context: StepContext, batches: Iterable[Batch]) -> None:  # noqa: B027 (optional)
        """Measure what the phase needs; ``batches`` is ``context.batches()`` and is read when iterated."""

    def prepare(self, batch: Batch, context: StepContext) -> Batch:
        """Return the batch that the networks and the losses see instead; ``batch`` itself must stay as it is.

        It may have more images than ``batch``, as many more for each image of it.
        """
        return batch

    @abstractmethod
    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the terms of the loss by name, each a differentiable scalar tensor with its weight included.

        The harness minimises their sum and logs each (``PhaseTraining`` in ``harness/training/iteration.py``).
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

    def after_gradients(self, gradients: Mapping[str, Tensor], context: StepContext) -> None:  # noqa: B027 (optional)
        """See the whole batch's gradients by parameter name before the update; change them in place.

        They are those of the loss, unscaled, before clipping; parameters still have the values at which they were
        taken. Not called for an iteration that is not finite: its update is left out.
        """

    def after_training(self, context: StepContext) -> None:  # noqa: B027 (optional)
        """End the phase: measure, or edit the weights. Called exactly once, whatever is interrupted."""

    def scores(self, output: Output) -> Tensor:
        """Return (B, K, H, W), whose arg-max is the predicted class in order of learning; by default the logits.

        A pure function of the options and the output. K is at least the number of classes known so far.
        """
        return output.logits

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed step, or the next step, needs besides the model's weights.

        Thresholds or importances, for example. Each needs memory of its own. They are stored in checkpoints and with
        the step's weights.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 (optional)
        """Restore what ``state_dict`` returned: that of the step before, and on a resume that of the checkpoint.

        Read it by name: a stored state may come back in another order. With ``micro_batches = False`` it is also called
        after an iteration that is not finite, with the state of before; on a GPU after every iteration, where it should
        read no value.
        """
