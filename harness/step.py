"""What a method is given: a batch, and what it may know of the step that is trained. ``method.py`` says when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from cispbench.splits.ranges import Range
from cispbench.splits.settings import Setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cispbench.harness.models.interface import IncrementalModel

View = Literal["train", "centre"]
TRAIN = "train"  # the phase of a method that has no others


@dataclass(frozen=True)
class Batch:
    """Training images of one step with their labels.

    ``images``: float32 (B, 3, H, W), normalised. ``target``: int64 (B, H, W); 0 is background, ``old_classes`` and the
    numbers above it are the step's own classes in the order of learning, 255 is void (ignored). Old and future classes
    are labelled as background (exemplars: see ``Memory.labels``). ``ids``: the B image names.

    ``origin``: int64 (B,), the step that an image was selected for; smaller than the current step for an exemplar. None
    without a memory. ``companions``: the maps of ``Method.companions`` by name, int64 (B, H, W), cropped and flipped
    with the images.
    """

    images: Tensor
    target: Tensor
    ids: tuple[str, ...]
    origin: Tensor | None = None
    companions: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What a network is called with: ``model(*batch.inputs)``."""
        return (self.images, self.companions) if self.companions else (self.images,)

    def to(self, device: Any) -> Batch:
        """Return the batch with all tensors on ``device`` (asynchronously where memory is pinned)."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True), self.ids)

    def part(self, images: slice) -> Batch:
        """Return some of the images, with all that belongs to them."""
        return self._mapped(lambda tensor: tensor[images], self.ids[images])

    def _mapped(self, change: Any, ids: tuple[str, ...]) -> Batch:
        return replace(
            self,
            images=change(self.images),
            target=change(self.target),
            ids=ids,
            origin=None if self.origin is None else change(self.origin),
            companions={name: change(tensor) for name, tensor in self.companions.items()},
        )


@dataclass(frozen=True)
class Companion:
    """A map that belongs to every image, of values 0 to 255: ``<folder>/<id>.png`` beside the data set's own folders.

    It is resized (to the nearest value), cropped and flipped with the image. ``fill``: its value where an image is
    padded. ``at_test``: needed for test images, too. ``how_to_get``: a sentence for people who do not have the maps,
    with the options that need none. The record names it as supervision that other methods do not have.
    """

    name: str
    folder: str
    fill: Annotated[int, Range(least=0, most=255)] = 255
    at_test: bool = False
    how_to_get: str = ""


@dataclass(frozen=True)
class Memory:
    """How a method keeps exemplars, images of earlier steps, and how a later step trains on them.

    ``size``: the most images. ``use``: "append" adds them to the images of the step; "replace" puts them in the place
    of ``share`` of the images of every batch, at places drawn anew for each. ``labels``: which classes their targets
    show: those of the "step" that is trained, of the step that each image comes from ("origin"), or all that were
    "seen" so far. ``view``: how ``Method.select_exemplars`` sees its candidates: "centre" (resized and cropped at the
    centre) or "train" (augmented).
    """

    size: Annotated[int, Range(least=1)]
    use: Literal["append", "replace"] = "append"
    share: Annotated[float, Range(above=0, most=1)] = 0.5
    labels: Literal["step", "origin", "seen"] = "step"
    view: View = "centre"


@dataclass(frozen=True)
class Exemplar:
    """An image of the memory: its name, the step it was selected for, and the classes noted for it."""

    id: str
    step: int
    classes: tuple[int, ...] = ()


class Services(Protocol):
    """What the harness does for a method during a step; a method calls them through the context."""

    def batches(self, view: View, size: int | None, ids: Sequence[str] | None) -> Iterable[Batch]:
        """See ``StepContext.batches``."""
        ...

    def batch_sum(self, tensor: Tensor) -> Tensor:
        """See ``StepContext.batch_sum``."""
        ...

    def log(self, name: str, value: Tensor) -> None:
        """See ``StepContext.log``."""
        ...


@dataclass(frozen=True)
class StepContext:
    """What a method may know of the step that is trained.

    ``step``: its index, from 0. ``old_classes``: the number of classes known before the step, background included (0
    in step 0). ``new_classes``: the number of classes that the step adds (background included in step 0). The logits'
    channels are therefore background, the other old classes, then the new classes from ``old_classes`` on, unless the
    method has a ``layout`` of its own. ``model`` is trained; ``previous`` is the frozen model of the step before, None
    in step 0. ``phase``: which of ``Method.phases`` is being trained. ``generator``: random numbers that are the same
    on all devices, on the CPU; every device must draw as many of them. None outside a training.
    """

    setting: Setting
    step: int
    old_classes: int
    new_classes: int
    model: IncrementalModel
    previous: IncrementalModel | None
    phase: str = TRAIN
    generator: torch.Generator | None = None
    services: Services | None = None

    @property
    def num_classes(self) -> int:
        """All classes known at the end of the step, background included."""
        return self.old_classes + self.new_classes

    def batches(
        self, view: View = "train", size: int | None = None, ids: Sequence[str] | None = None
    ) -> Iterable[Batch]:
        """Return a new pass over the step's images; they are read when it is iterated.

        By default it is the first epoch of the training: its order, its augmentation, whole batches alone, exemplars
        included if they are appended. With ``size`` or ``ids`` every image is in it once, in the order of ``ids`` (by
        default of the step's own list), ``size`` of them a batch, the last batch perhaps smaller. ``view`` "centre":
        resized, and the training's crop cut from the middle. Two passes with equal arguments are equal. Not to be
        called in ``losses``. Raises DataError for an id that is not of the step.
        """
        return self._services().batches(view, size, ids)

    def batch_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the devices that share the batch, with gradients; all must call it.

        On one device it is the tensor itself. For terms that need the whole batch, such as a mean over all its pixels
        of a class. Such a method sets ``micro_batches = False``: MethodError where a device sees a part at a time.
        """
        return tensor if self.services is None else self.services.batch_sum(tensor)

    def log(self, name: str, value: Tensor) -> None:
        """Note a number of this iteration beside the terms of the loss, for the log alone."""
        if self.services is not None:
            self.services.log(name, value)

    def _services(self) -> Services:
        if self.services is None:
            raise RuntimeError("this context belongs to no training, so that it has no batches")
        return self.services
