"""Scenes drawn from (seed, index) alone: any data set's number of classes without a single file.

A class is recognisable only by its look: a shape, two colours and a texture. Scenes hold several objects on a
cluttered background; as in the real data, objects of future and old classes stand beside those of a step, so
forgetting and background shift happen for the same reasons.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cispbench.harness.data.companions import Maps
from cispbench.harness.data.synthetic_maps import SceneMaps, saliency
from cispbench.harness.machine.lazy import torch
from cispbench.harness.step import Companion
from cispbench.splits.datasets import dataset as find_dataset

if TYPE_CHECKING:
    from torch import Tensor

Field = NDArray[np.float32]
Pixels = NDArray[np.uint8]

VERSION = 1  # raised whenever a scene's pixels change
VOID = 255
# (u, v) is the place in the object's own coordinates, turned and scaled to radius 1. A shape is where its field is at
# most 1; a texture is where the second colour shows. A class finds its look by the order of the names.
SHAPES: dict[str, Callable[[Field, Field], NDArray[Any]]] = {
    "disc": lambda u, v: np.hypot(u, v),
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) / 0.86,
    "diamond": lambda u, v: (np.abs(u) + np.abs(v)) / 1.2,
    "triangle": lambda u, v: np.maximum(-v / 0.7, (np.abs(u) * 1.8 + v) / 1.1),
    "cross": lambda u, v: np.minimum(np.maximum(np.abs(u), np.abs(v) / 0.42), np.maximum(np.abs(v), np.abs(u) / 0.42)),
}
TEXTURES: dict[str, Callable[[Field, Field], NDArray[np.bool_]]] = {
    "plain": lambda u, v: v > 0.55,
    "stripes": lambda u, v: np.sin(9.0 * u) > 0.2,
    "checks": lambda u, v: np.sin(7.0 * u) * np.sin(7.0 * v) > 0.0,
    "dots": lambda u, v: np.sin(8.0 * u) + np.sin(8.0 * v) > 1.0,
    "rings": lambda u, v: np.sin(10.0 * np.hypot(u, v)) > 0.1,
}


@dataclass(frozen=True)
class Look:
    """How a class looks: shape and texture by name, two RGB colours in 0..1."""

    shape: str
    texture: str
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]


@cache
def look_of(number: int) -> Look:
    """Return the look of class ``number`` (1 upwards); neighbours in number are far apart in hue."""
    shapes, textures = list(SHAPES), list(TEXTURES)
    hue = (number * 0.618034) % 1.0
    second = (hue + 0.17 + 0.23 * (number % 4)) % 1.0
    bright = (1.0, 0.72)[(number // 7) % 2]
    first = colorsys.hsv_to_rgb(hue, 0.9, bright)
    other = colorsys.hsv_to_rgb(second, 0.75, (0.55, 0.95)[number % 2])
    return Look(shapes[(number + number // 5) % 5], textures[(number * 2 + number // 25) % 5], (first, other))


class SyntheticSource:
    """A data source of drawn scenes; see ``cispbench.harness.data.source.Source``.

    ``size`` is the side of a scene in pixels, ``objects`` the least and most objects of one scene.
    """

    kind: Literal["synthetic"] = "synthetic"

    def __init__(
        self, dataset: str, *, train: int = 1024, val: int = 256, size: int = 48, objects: tuple[int, int] = (2, 4)
    ) -> None:
        self.dataset = dataset
        self.size = size
        self.objects = objects
        self.num_foreground = find_dataset(dataset).classes
        self._counts = {"train": train, "val": val}
        self._scenes: dict[tuple[str, int], tuple[Pixels, Pixels]] = {}
        parts = [dataset, VERSION, train, val, size, *objects]
        probe = b"".join(pixels.tobytes() for index in range(8) for pixels in self._scene("train", index))
        self.fingerprint = hashlib.sha256(repr(parts).encode() + hashlib.sha256(probe).digest()).hexdigest()

    def ids(self, split: str) -> tuple[str, ...]:
        """Return the names of all scenes of ``split`` ("train" or "val")."""
        return tuple(f"{split}_{index:05d}" for index in range(self._counts[split]))

    def presence(self, split: str) -> dict[str, frozenset[int]]:
        """Return the classes present in each scene."""
        found = {}
        for image_id in self.ids(split):
            _, mask = self._scene(split, _index(image_id))
            found[image_id] = frozenset(int(value) for value in np.unique(mask) if 0 < value < VOID)
        return found

    def read(self, split: str, image_id: str) -> tuple[Tensor, Tensor]:
        """Return a scene: uint8 (3, S, S) and its mask, uint8 (S, S), with a void rim around each object."""
        image, mask = self._scene(split, _index(image_id))
        return torch.from_numpy(image), torch.from_numpy(mask)

    def maps(self, companion: Companion, split: str, ids: Sequence[str]) -> Maps:
        """Return the saliency of scenes, see ``synthetic_maps.saliency``. Raises DataError for another companion."""
        return SceneMaps.draw(companion, {image_id: self._saliency(split, _index(image_id)) for image_id in ids})

    def _saliency(self, split: str, index: int) -> Pixels:
        _, mask = self._scene(split, index)
        return saliency(np.random.default_rng((*self._seed(split, index), 1)), mask)

    def _seed(self, split: str, index: int) -> tuple[int, ...]:
        return VERSION, ("train", "val").index(split), index, self.num_foreground

    def _scene(self, split: str, index: int) -> tuple[Pixels, Pixels]:
        key = (split, index)
        if key not in self._scenes:
            rng = np.random.default_rng(self._seed(split, index))
            self._scenes[key] = draw_scene(rng, self.num_foreground, self.size, self.objects)
        return self._scenes[key]


def synthetic_source(dataset: str) -> SyntheticSource:
    """Return the scenes of a data set as the profile quick uses them, with as many objects as the data set states."""
    return SyntheticSource(dataset, objects=find_dataset(dataset).scene_objects)


def _index(image_id: str) -> int:
    return int(image_id.rsplit("_", 1)[1])


def draw_scene(
    rng: np.random.Generator, num_foreground: int, size: int, objects: tuple[int, int]
) -> tuple[Pixels, Pixels]:
    """Draw one scene: uint8 image (3, S, S) and mask (S, S)."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    image = _background(rng, rows, columns, size)
    mask = np.zeros((size, size), np.uint8)
    count = int(rng.integers(objects[0], objects[1] + 1))
    for number in rng.choice(num_foreground, count, replace=False) + 1:
        look = look_of(int(number))
        radius = size * rng.uniform(0.14, 0.24)
        centre = rng.uniform(radius * 0.7, size - radius * 0.7, 2)
        turn = rng.uniform(-0.4, 0.4)
        dy, dx = rows - centre[0], columns - centre[1]
        u = (np.cos(turn) * dx + np.sin(turn) * dy) / radius
        v = (np.cos(turn) * dy - np.sin(turn) * dx) / radius
        distance = np.asarray(SHAPES[look.shape](u, v), np.float32)
        inside = distance <= 1.0
        light = rng.uniform(0.8, 1.1)
        first, second = (np.asarray(colour, np.float32)[:, None, None] * light for colour in look.colours)
        paint = np.where(TEXTURES[look.texture](u, v)[None], second, first).astype(np.float32, copy=False)
        np.copyto(image, paint, where=inside)
        rim = (distance > 1.0) & (distance <= 1.0 + 0.8 / radius)
        mask[rim] = VOID
        mask[inside] = number
    image += rng.normal(0.0, 0.03, image.shape).astype(np.float32)
    return (np.clip(image, 0.0, 1.0) * 255).astype(np.uint8), mask


def _background(rng: np.random.Generator, rows: Field, columns: Field, size: int) -> Field:
    """A soft gradient of two dull colours with a few waves: never the look of a class."""
    base, step = rng.uniform(0.25, 0.65, (3, 1, 1)), rng.uniform(-0.15, 0.15, (3, 1, 1))
    angle, waves, phase = rng.uniform(0, np.pi), rng.uniform(1.0, 4.0), rng.uniform(0, 6.28)
    along = (np.cos(angle) * rows + np.sin(angle) * columns) / size
    return np.asarray(base + step * np.sin(6.28 * waves * along + phase)[None], np.float32)
