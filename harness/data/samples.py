"""The samples of a training or a test: an image with its labels and companions, transformed together."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cispbench.harness.data.companions import Maps
from cispbench.harness.data.exemplars import ExemplarSet
from cispbench.harness.data.labels import relabel, to_table
from cispbench.harness.data.order import Draw, generator_of
from cispbench.harness.data.source import Source
from cispbench.harness.data.transforms import EvalTransform, EvalView, TrainTransform
from cispbench.harness.data.workers import Sample
from cispbench.harness.recipes.fields import DataRecipe


class _LabelledImages(Dataset[Sample]):
    def __init__(self, source: Source, split: str, companions: Sequence[Maps]) -> None:
        self._source, self._split, self._companions = source, split, tuple(companions)

    def _read(self, image_id: str, table: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image and its labels, (H, W), or (1 + K, H, W) with K companions after them."""
        image, mask = self._source.read(self._split, image_id)
        labels = relabel(mask, table, place=f"the mask of the {self._split} image {image_id}")
        if not self._companions:
            return image, labels
        return image, torch.stack([labels, *(maps.read(image_id) for maps in self._companions)])


class TrainSet(_LabelledImages):
    """Augmented samples by ``Draw``: image uint8 (3, H, W), target uint8 (H, W), the image's place.

    The places are those of ``ids``, then those of ``exemplars``, which have label tables of their own. With K
    ``companions`` the target is (1 + K, H, W). ``table``: 256 labels, see ``labels.to_table``, applied before the
    augmentation: what ``recipe.pad_label`` adds stays as it is whatever ``recipe.void`` does with the data's own void.
    ``cache`` keeps decoded images in memory, each worker its own.
    """

    def __init__(
        self, source: Source, ids: Sequence[str], table: Sequence[int] | Tensor, recipe: DataRecipe, seed: int,
        cache: bool = False, exemplars: ExemplarSet | None = None, companions: Sequence[Maps] = (),
    ) -> None:  # fmt: skip
        super().__init__(source, "train", companions)
        self._table, self._own = to_table(table, recipe.void), len(ids)
        self._exemplar_tables = [to_table(own, recipe.void) for own in exemplars.tables] if exemplars else []
        self.ids = (*ids, *(exemplars.ids if exemplars else ()))
        self._transform = TrainTransform(recipe, _fills(companions))
        self._centre: EvalTransform | None = None
        self._seed = seed
        self._cache, self._kept = cache, dict[int, tuple[Tensor, Tensor]]()

    def __getitem__(self, draw: Draw) -> Sample:
        pair = self._kept.get(draw.image) or self._read(self.ids[draw.image], self._table_of(draw.image))
        if self._cache:
            self._kept[draw.image] = pair
        if self._centre is not None:
            return *self._centre(*pair), draw.image
        return *self._transform(*pair, generator_of("sample", self._seed, *draw)), draw.image

    def seen_by(self, view: EvalView) -> TrainSet:
        """Return the same samples without augmentation: as a test would see the images."""
        centred = copy.copy(self)
        centred._centre = EvalTransform(view, _fills(self._companions))
        return centred

    def _table_of(self, place: int) -> Tensor:
        return self._table if place < self._own else self._exemplar_tables[place - self._own]


class EvalSet(_LabelledImages):
    """Samples of test images by id, as ``view`` sees them."""

    def __init__(self, source: Source, split: str, table: Tensor, view: EvalView, companions: Sequence[Maps]) -> None:
        super().__init__(source, split, companions)
        self._table, self._transform = table, EvalTransform(view, _fills(companions))

    def __getitem__(self, image_id: str) -> Sample:
        return *self._transform(*self._read(image_id, self._table)), image_id


def split_planes(planes: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the target (B, H, W) and the companions by name, of what ``stack`` has made."""
    return (planes[0], dict(zip(names, planes[1:], strict=True))) if names else (planes, {})


def _fills(companions: Sequence[Maps]) -> list[int]:
    return [maps.companion.fill for maps in companions]
