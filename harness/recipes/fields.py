"""Recipes: everything a person can choose about a training, one field a line, read strictly."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

from cispbench.splits.errors import RecipeError, nearest

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
        phase: OptimRecipe = load_strict(OptimRecipe, {**dataclasses.asdict(self.optim), **changes}, "later")
        return phase

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and scalars, as JSON will hold them."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _type_hints(cls: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields, resolved once: a sweep asks for them thousands of times."""
    return _resolved_hints(cls)


@cache
def _resolved_hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def load_strict(cls: type[Any], values: Any, place: str) -> Any:
    """Build a frozen dataclass from a mapping: unknown keys and wrong types are RecipeErrors naming ``place``."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{place} must be a mapping of options, not {values!r}.")
    hints = _type_hints(cls)
    problems = [f"unknown key {place}.{key}. {nearest(str(key), hints)}" for key in values if key not in hints]
    accepted = {}
    for key, value in values.items():
        if key in hints:
            try:
                accepted[key] = _accept(hints[key], value, f"{place}.{key}")
            except RecipeError as error:
                problems.append(str(error))
    required = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    problems += [f"{place}.{name} is missing." for name in sorted(required - set(values))]
    if problems:
        raise RecipeError("\n  ".join(["the recipe is wrong:", *problems] if len(problems) > 1 else problems))
    try:
        return cls(**accepted)
    except RecipeError as error:
        raise RecipeError(f"{place}.{error.message}", hint=error.hint) from error


def check_partial(cls: type[Any], values: Mapping[str, Any], place: str) -> None:
    """Check the keys and types of a part of a dataclass's fields. Raises RecipeError naming ``place``."""
    hints = _type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise RecipeError(f"{place}: unknown key {key!r}. {nearest(str(key), hints)}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            check_partial(typing.cast(type, hints[key]), value, f"{place}: {key}")
        else:
            _accept(hints[key], value, f"{place}: {key}")


def _accept(kind: Any, value: Any, place: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return load_strict(typing.cast(type, kind), value, place)
    if origin in (types.UnionType, typing.Union):
        return _accept_union(arguments, value, place)
    if origin is Literal:
        if value in arguments:
            return value
        raise RecipeError(f"{place} is {value!r}. {nearest(str(value), map(str, arguments))}")
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_accept(arguments[0], item, place) for item in value)
    if origin is dict:
        if isinstance(value, Mapping):
            return dict(value)
        raise RecipeError(f"{place} must be a mapping of options, not {value!r}.")
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    wanted = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise RecipeError(f"{place} must be of type {wanted}, not {value!r}.")


def _accept_union(arguments: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    rest = [kind for kind in arguments if kind is not type(None)]
    if len(rest) == 1:
        return _accept(rest[0], value, place)
    for kind in rest:
        try:
            return _accept(kind, value, place)
        except RecipeError:
            continue
    raise RecipeError(f"{place} must be one of {', '.join(map(str, arguments))}, not {value!r}.")
