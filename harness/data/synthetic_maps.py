"""Companions of the built-in scenes: saliency alone, since scenes have no other maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cispbench.harness.data.companions import maps_fingerprint
from cispbench.harness.data.decode import sha256
from cispbench.harness.machine.lazy import torch
from cispbench.harness.step import Companion
from cispbench.splits.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]

SALIENCY_FOLDER = "saliency_map"
SALIENT = 255


@dataclass(frozen=True)
class SceneMaps:
    """Maps of scenes, by image. Keeps the protocol ``companions.Maps``."""

    companion: Companion
    drawn: Mapping[str, Pixels]

    @classmethod
    def draw(cls, companion: Companion, drawn: Mapping[str, Pixels]) -> SceneMaps:
        """Return saliency as a companion. Raises DataError for a companion of another folder."""
        if companion.folder != SALIENCY_FOLDER:
            raise DataError(
                f"the built-in scenes have no companion {companion.name!r} ({companion.folder}); they have "
                f"{SALIENCY_FOLDER} alone.",
                hint=companion.how_to_get or "Use real data that have it (--profile mini or paper).",
            )
        return cls(companion, drawn)

    @cached_property
    def fingerprint(self) -> str:
        """Return a hexadecimal digest of the maps by image."""
        digests = {name: sha256(repr(pixels.shape).encode() + pixels.tobytes()) for name, pixels in self.drawn.items()}
        return maps_fingerprint(self.companion, digests)

    def read(self, image_id: str) -> Tensor:
        """Return a scene's map, uint8 (S, S): 255 where something is salient, else 0."""
        return torch.from_numpy(self.drawn[image_id])


def saliency(rng: np.random.Generator, mask: Pixels) -> Pixels:
    """Return 255 at the objects of all classes, those of other steps included, and 0 at the background.

    As a network that looks for what is salient would err, the outline is not exact: the rim of an object counts as
    salient, and all of the map is moved by up to one pixel each way.
    """
    rows, columns = rng.integers(-1, 2, 2)
    height, width = mask.shape
    padded = np.pad(mask, 1)
    moved = padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]
    return np.where(moved > 0, SALIENT, 0).astype(np.uint8)
