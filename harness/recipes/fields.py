"""Recipes: everything a person can choose about a training, one field a line, read strictly."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from cispbench.splits.errors import RecipeError
from cispbench.splits.strict_fields import read_fields

T = TypeVar("T")
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class DataRecipe:
    """How training images become batches."""

    crop: int = 512  # side of the square seen by the network, pixels
    resize_short: int | None = None  # shorter side before anything else, pixels
    resize: Literal["area", "scale", "none"] = "area"  # random resized crop by area, random rescale, or neither
    scale: tuple[float, ...] = (0.5, 2.0)  # range of the area (of the crop) or of the rescaling factor
    ratio: tuple[float, ...] = (0.75, 4 / 3)  # range of width / height, for "area"
    flip: float = 0.5  # probability of a horizontal flip
    pad_label: int = 255  # label of padded pixels: 255 void, 0 background (MBS's release)
    void: Literal["void", "background"] = "void"  # what the data set's void becomes in training
    normalise: Literal["imagenet", "half"] = "imagenet"  # channel means and deviations

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require("crop", self.crop, self.crop >= 2, "at least 2 pixels")
        short = self.resize_short
        _require("resize_short", short, short is None or short >= 2, "at least 2 pixels, or null")
        for name, pair in (("scale", self.scale), ("ratio", self.ratio)):
            _require(name, pair, len(pair) == 2 and 0 < pair[0] <= pair[1] < math.inf, "two rising positive numbers")
        _require("flip", self.flip, 0 <= self.flip <= 1, "a probability")
        _require("pad_label", self.pad_label, self.pad_label in (0, 255), "0 (background) or 255 (void)")


@dataclass(frozen=True)
class EvaluationRecipe:
    """How test images are seen."""

    resize_short: int | None = 512  # shorter side, pixels
    crop: int | None = 512  # side of the centre crop, pixels; null: the full image
    batch: int = 8  # images a forward pass

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, side in (("resize_short", self.resize_short), ("crop", self.crop)):
            _require(name, side, side is None or side >= 2, "at least 2 pixels, or null")
        _require("batch", self.batch, self.batch >= 1, "at least 1")


@dataclass(frozen=True)
class OptimRecipe:
    """How a step is optimised (SGD); ``later`` in the recipe overrides fields from step 1 on."""

    lr: float = 0.01  # learning rate of the decoder at the start
    encoder_lr: float = 1.0  # factor on ``lr`` for the encoder
    classifier_lr: float = 1.0  # factor on ``lr`` for parameters outside encoder and decoder
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    schedule: Literal["poly", "constant"] = "poly"
    power: float = 0.9  # exponent of the poly schedule
    warmup: int = 0  # iterations of linear warm-up
    batch: int = 24  # images an iteration, over all devices
    epochs: float | None = None  # passes over the step's images, or
    iterations: int | None = None  # iterations of the step
    clip: float | None = None  # largest gradient norm; null: no clipping
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        """Check the rules between fields."""
        for name in ("lr", "epochs", "iterations", "batch", "clip"):
            value = getattr(self, name)
            _require(name, value, value is None or 0 < value < math.inf, "positive")
        for name in ("encoder_lr", "classifier_lr", "weight_decay", "power", "warmup"):
            value = getattr(self, name)
            _require(name, value, 0 <= value < math.inf, "zero or more")
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "at least 0 and below 1")
        if self.nesterov and self.momentum == 0:
            raise RecipeError("nesterov needs a momentum above 0.")
        if (self.epochs is None) == (self.iterations is None):
            raise RecipeError("either epochs or iterations must be given, and not both.")


def _require(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise RecipeError(f"{name} must be {rule}, not {value!r}.")


@dataclass(frozen=True)
class Recipe:
    """All choices of a run besides setting, seed and data."""

    model: str
    weights: str | None = "none"  # a name from weights.yaml, "none" for a random start, null: must be given
    freeze_batch_norm: bool = False  # the encoder's batch norms keep their pre-trained statistics
    data: DataRecipe = field(default_factory=DataRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    optim: OptimRecipe = field(default_factory=lambda: OptimRecipe(epochs=30))
    later: dict[str, Any] = field(default_factory=dict)  # fields of optim that change from step 1 on
    method: dict[str, Any] = field(default_factory=dict)  # the method's own options

    def phase(self, step: int) -> OptimRecipe:
        """Return the optimisation of ``step``."""
        return self.optim if step == 0 or not self.later else self._later_phase

    @cached_property
    def _later_phase(self) -> OptimRecipe:
        changes = dict(self.later)
        if "iterations" in changes or "epochs" in changes:
            changes = {"epochs": None, "iterations": None, **changes}
        return load_strict(OptimRecipe, {**dataclasses.asdict(self.optim), **changes}, "later")

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and scalars, as JSON will hold them."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def load_strict(kind: type[T], values: Any, place: str) -> T:
    """Read a recipe, a section of one, or a method's options. Raises RecipeError as ``read_fields`` does."""
    return read_fields(kind, values, place, RecipeError)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
