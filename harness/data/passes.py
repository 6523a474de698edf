"""Passes over the images of a step outside its iterations: ``StepContext.batches``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.data.transforms import EvalView
from cispbench.harness.method import Batch
from cispbench.harness.recipes.fields import DataRecipe
from cispbench.harness.step import View


@dataclass(frozen=True)
class Pass:
    """Batches on a device, read anew whenever it is iterated."""

    read: Callable[[], Iterator[Batch]]
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        return (batch.to(self.device) for batch in self.read())


@dataclass(frozen=True)
class Passes:
    """Makes the passes over what a loader has, its exemplars included. ``centre``: what the view "centre" sees."""

    loader: TrainLoader
    centre: EvalView
    device: torch.device

    def __call__(self, view: View = "train", size: int | None = None, ids: Sequence[str] | None = None) -> Pass:
        """Return a pass, see ``StepContext.batches``.

        Exemplars that take the place of images in the training's batches are left out of its first epoch. They can be
        named in ``ids``; an id that the step's own list has, too, means the step's own image. Raises DataError for an
        unknown id, ValueError for a size below 1 or an unknown view.
        """
        views: dict[str, EvalView | None] = {"train": None, "centre": self.centre}
        if view not in views:
            raise ValueError(f"view is {' or '.join(views)}, not {view!r}")
        seen = views[view]
        if size is None and ids is None:
            return Pass(lambda: self.loader.first_epoch(seen), self.device)
        places = self.loader.places(self.loader.ids if ids is None else ids)
        size = self.loader.batch_size if size is None else size
        if size < 1:
            raise ValueError(f"size is at least 1, not {size}")
        return Pass(lambda: self.loader.listed(places, size, seen), self.device)


def centre_view(data: DataRecipe) -> EvalView:
    """Return what the view "centre" of training images is: the training's crop, cut from the middle.

    The shorter side is brought to that of the training first, or to the crop where the recipe does not resize. How test
    images are seen has no part in it: the keys of steps do not hold that, and what is measured here decides weights.
    """
    return EvalView(data.resize_short or data.crop, data.crop, data.normalise)
