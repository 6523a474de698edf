"""Passes over the images of a step outside its iterations: ``StepContext.batches``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.data.transforms import EvalView
from cispbench.harness.method import Batch
from cispbench.harness.recipes.fields import Recipe
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


def centre_view(recipe: Recipe) -> EvalView:
    """Return what the view "centre" of training images is: that of test images.

    Where whole test images are seen, the shorter side is brought to the training's crop, if the recipe does not resize,
    and that crop is cut: images must have one size to share a batch.
    """
    evaluation, crop = recipe.evaluation, recipe.data.crop
    if evaluation.crop is not None:
        return EvalView(evaluation.resize_short, evaluation.crop, recipe.data.normalise)
    return EvalView(evaluation.resize_short or crop, crop, recipe.data.normalise)
