"""The fields of a recipe: what can be chosen about training and testing, one field a line with its unit and range."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from cispbench.results.record_fields import plain
from cispbench.splits.errors import RecipeError, StoreError
from cispbench.splits.ranges import Range
from cispbench.splits.strict_fields import check_ranges, read_fields

T = TypeVar("T")
# Upper limits are far above all that makes sense: they stop slips, such as a zero too many, before a training does.
Pixels = Annotated[int, Range(least=2, most=16384)]
Images = Annotated[int, Range(least=1, most=65536)]
Factor = Annotated[float, Range(least=0, most=1000)]
Epochs = Annotated[float, Range(above=0, most=1e6)]
Scale = Annotated[float, Range(above=0, most=100)]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class DataRecipe:
    """How training images become batches."""

    crop: Pixels = 512  # side of the square that the network sees, pixels
    resize_short: Pixels | None = None  # shorter side to which an image is resized first, pixels; null: not resized
    resize: Literal["area", "scale", "none"] = "area"  # random resized crop by area, random rescaling, or neither
    scale: tuple[Scale, ...] = (0.5, 2.0)  # range: of the crop's share of the area ("area"), of the factor ("scale")
    ratio: tuple[Scale, ...] = (0.75, 4 / 3)  # range of width / height of the crop, for "area" alone
    flip: Annotated[float, Range(least=0, most=1)] = 0.5  # probability of a horizontal flip
    pad: Literal["ends", "all-sides"] = "ends"  # where small images are padded: short sides, or all (MBS)
    pad_label: int = 255  # label of padded pixels: 255 void, 0 background (MBS's release)
    void: Literal["void", "background"] = "void"  # what the data set's void (255) becomes in training
    normalise: Literal["imagenet", "half"] = "imagenet"  # mean and deviation by channel: ImageNet's, or 0.5 for all

    def __post_init__(self) -> None:
        check_ranges(self, RecipeError)
        for name, pair in (("scale", self.scale), ("ratio", self.ratio)):
            _require(name, pair, len(pair) == 2 and pair[0] <= pair[1], "two rising positive numbers")
        _require("pad_label", self.pad_label, self.pad_label in (0, 255), "0 (background) or 255 (void)")


@dataclass(frozen=True)
class EvaluationRecipe:
    """How test images are seen."""

    resize_short: Pixels | None = 512  # shorter side to which an image is resized, pixels; null: not resized
    crop: Pixels | None = 512  # side of the centre crop, pixels; null: the full image
    batch: Images = 8  # images per forward pass

    def __post_init__(self) -> None:
        check_ranges(self, RecipeError)


@dataclass(frozen=True)
class OptimRecipe:
    """How a step is optimised (SGD); ``later`` in the recipe replaces fields from step 1 on."""

    lr: Annotated[float, Range(above=0, most=1000)] = 0.01  # learning rate of the decoder before the schedule
    encoder_lr: Factor = 1.0  # learning rate of the encoder, as a factor on ``lr``; 0: not trained
    classifier_lr: Factor = 1.0  # the same for parameters outside encoder and decoder
    momentum: Annotated[float, Range(least=0, below=1)] = 0.9  # of SGD
    nesterov: bool = True  # Nesterov's form of the momentum
    weight_decay: Factor = 1e-4  # factor of the L2 penalty
    schedule: Literal["poly", "constant"] = "poly"  # the learning rate falls to 0 as a power, or stays
    power: Factor = 0.9  # exponent of the poly schedule
    warmup: Annotated[int, Range(least=0, most=1e9)] = 0  # iterations in which the learning rate rises linearly
    batch: Images = 24  # images per iteration, over all devices
    epochs: Annotated[float, Range(above=0, most=1e6)] | None = (
        None  # length of the step in passes over its images; either this or ``iterations``
    )
    iterations: Annotated[int, Range(least=1, most=1e9)] | None = None  # length of the step in iterations
    clip: Annotated[float, Range(above=0, most=1e9)] | None = None  # largest norm of the gradient; null: no clipping
    precision: Precision = "fp32"  # number format of forward and backward pass

    def __post_init__(self) -> None:
        check_ranges(self, RecipeError)
        if self.nesterov and self.momentum == 0:
            raise RecipeError("nesterov needs a momentum above 0.")
        if (self.epochs is None) == (self.iterations is None):
            raise RecipeError("either epochs or iterations must be given, and not both.")


def _require(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise RecipeError(f"{name} must be {rule}, not {value!r}.")


@dataclass(frozen=True)
class Recipe:
    """Everything that a run's recipe decides: all but setting, seed, data and devices."""

    model: str  # a name of `cispbench list models`
    weights: str | None = "none"  # a name from weights.yaml, "none": a random start, null: --weights must say
    freeze_batch_norm: bool = False  # whether the encoder's batch norms keep their pre-trained statistics
    data: DataRecipe = field(default_factory=DataRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    optim: OptimRecipe = field(default_factory=lambda: OptimRecipe(epochs=30))
    later: dict[str, Any] = field(default_factory=dict)  # fields of ``optim`` that differ from step 1 on
    method: dict[str, Any] = field(default_factory=dict)  # options of the method; those left out have their defaults

    def phase(self, step: int) -> OptimRecipe:
        """Return the optimisation of ``step``."""
        return self.optim if step == 0 or not self.later else self._later_phase

    @cached_property
    def _later_phase(self) -> OptimRecipe:
        changes = dict(self.later)
        # A length of later steps replaces that of step 0, which may be given in the other unit.
        if "iterations" in changes or "epochs" in changes:
            changes = {"epochs": None, "iterations": None, **changes}
        return load_strict(OptimRecipe, {**dataclasses.asdict(self.optim), **changes}, "recipe", "later")

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and scalars, as JSON will hold them. Raises RecipeError for what it cannot hold."""
        try:
            values: dict[str, Any] = plain(dataclasses.asdict(self), "recipe")
        except StoreError as error:  # a method's own option, which was computed or has no type
            raise RecipeError(error.message.removeprefix("step record: "), hint=error.hint) from error
        return values

    def as_recorded(self) -> dict[str, Any]:
        """Return ``as_dict`` as records and keys hold it: without ``data.pad`` at its default.

        Records and keys were made before there was the choice, and what they stand for has not changed.
        """
        values = self.as_dict()
        if self.data.pad == DataRecipe.pad:
            del values["data"]["pad"]
        return values


def load_strict(kind: type[T], values: Any, place: str, field: str = "") -> T:
    """Read a recipe, its section ``field``, or a method's options. Raises RecipeError as ``read_fields`` does."""
    return read_fields(kind, values, place, RecipeError, field)
