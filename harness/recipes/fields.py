"""The fields of a recipe: what can be chosen about training and testing, one field a line with its unit and range."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from cispbench.harness.recipes.old_names import SELECTORS, with_current_names, with_old_names
from cispbench.harness.step import TRAIN
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


def _require(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise RecipeError(f"{name} must be {rule}, not {value!r}.")


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
    """How a step is optimised; ``later``, ``steps`` and ``phases`` in the recipe replace fields of it.

    ``rates`` and ``decay`` give factors by selector, ``frozen_norms`` and ``frozen_dropout`` name some. Selectors are
    in ``harness/recipes/selectors.py``; docs/recipes.md has examples.
    """

    lr: Annotated[float, Range(above=0, most=1000)] = 0.01  # learning rate before the schedule
    rates: dict[str, Factor] = field(default_factory=dict)  # factors on ``lr`` by selector, else 1; 0: not learnt
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Range(least=0, below=1)] = 0.9  # of SGD alone
    nesterov: bool = True  # Nesterov's form of the momentum, of SGD alone
    betas: tuple[Annotated[float, Range(least=0, below=1)], ...] = (0.9, 0.999)  # of AdamW alone: its two moments
    eps: Annotated[float, Range(above=0, most=1)] = 1e-8  # of AdamW alone: added to the root of the second moment
    weight_decay: Factor = 1e-4  # factor of the L2 penalty; with AdamW of the decoupled decay
    decay: dict[str, Factor] = field(default_factory=dict)  # factors on ``weight_decay`` by selector, else 1
    schedule: Literal["poly", "constant"] = "poly"  # the learning rate falls to 0 as a power, or stays
    power: Factor = 0.9  # exponent of the poly schedule
    floor: Annotated[float, Range(least=0, most=1000)] = 0.0  # least learning rate of the schedule, no factor on ``lr``
    warmup: Annotated[int, Range(least=0, most=1e9)] = 0  # iterations in which the learning rate rises linearly
    warmup_share: Annotated[float, Range(least=0, most=1)] = 0.0  # the same as a share of the step's iterations
    warmup_start: Annotated[float, Range(least=0, most=1)] = 1e-3  # factor that a warm-up by share begins with
    batch: Images = 24  # images per iteration, over all devices
    epochs: Annotated[float, Range(above=0, most=1e6)] | None = (
        None  # length of the step in passes over its images; either this or ``iterations``
    )
    iterations: Annotated[int, Range(least=0, most=1e9)] | None = None  # length of the step in iterations
    clip: Annotated[float, Range(above=0, most=1e9)] | None = None  # largest norm of the gradient; null: no clipping
    precision: Precision = "fp32"  # number format of forward and backward pass
    frozen_norms: tuple[str, ...] = ()  # selectors or "all": batch norms with fixed statistics that are not learnt
    frozen_dropout: tuple[str, ...] = ()  # sections, "classifier" or "all": no dropout and no stochastic depth

    def __post_init__(self) -> None:
        check_ranges(self, RecipeError)
        _require("betas", self.betas, len(self.betas) == 2, "two numbers")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise RecipeError("nesterov needs a momentum above 0.")
        if (self.epochs is None) == (self.iterations is None):
            raise RecipeError("either epochs or iterations must be given, and not both.")
        if self.warmup_share and self.schedule != "poly":
            raise RecipeError(f"warmup_share belongs to the schedule poly, and the schedule is {self.schedule}.")
        if self.warmup and self.warmup_share:
            raise RecipeError("either warmup or warmup_share may be above 0, and not both.")

    def length(self, epoch_batches: int) -> int:
        """Return the iterations of a training whose epochs have so many batches; at least one if it has epochs."""
        if self.iterations is not None:
            return self.iterations
        return max(1, math.ceil((self.epochs or 0) * epoch_batches))

    def as_recorded(self) -> dict[str, Any]:
        """Return the fields as records and keys hold them: see ``Recipe.as_recorded``."""
        values = dataclasses.asdict(self)
        for name in _NEW_FIELDS:
            if values[name] == _DEFAULTS[name]:
                del values[name]
        old: dict[str, Any] = with_old_names({"optim": values})["optim"]
        return dict.fromkeys(SELECTORS, 1.0) | old


_NEW_FIELDS = (
    "rates", "optimizer", "betas", "eps", "decay", "floor", "warmup_share", "warmup_start", "frozen_norms",
    "frozen_dropout",
)  # fmt: skip
_DEFAULTS = dataclasses.asdict(OptimRecipe(epochs=1))


@dataclass(frozen=True)
class Recipe:
    """Everything that a run's recipe decides: all but setting, seed, data and devices.

    ``later``, ``steps`` and ``phases`` hold fields of ``optim`` that differ: from step 1 on, at the steps with these
    numbers, in the phases of these names (``Method.phases``). ``rates`` and ``decay`` differ selector by selector.
    """

    model: str  # a name of `cispbench list models`
    weights: str | None = "none"  # a name from weights.yaml, "none": a random start, null: --weights must say
    freeze_batch_norm: bool = False  # whether the encoder's batch norms keep their pre-trained statistics
    data: DataRecipe = field(default_factory=DataRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    optim: OptimRecipe = field(default_factory=lambda: OptimRecipe(epochs=30))
    later: dict[str, Any] = field(default_factory=dict)  # fields of ``optim`` that differ from step 1 on
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)  # and those that differ at single steps
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)  # and those that differ in phases of these names
    method: dict[str, Any] = field(default_factory=dict)  # options of the method; those left out have their defaults

    def __post_init__(self) -> None:
        for number in self.steps:
            _require("a key of steps", number, number.isdecimal() and number == str(int(number)), "a step's number")

    def phase(self, step: int, name: str = TRAIN) -> OptimRecipe:
        """Return the optimisation of a phase of ``step``: ``optim`` with the changes of the other sections over it.

        ``later`` comes first, then ``steps``, then ``phases``: the last one that sets a field wins. Raises RecipeError
        for a field that does not exist, or values that do not fit together.
        """
        sections = {
            "later": self.later if step > 0 else {},
            f"steps.{step}": self.steps.get(str(step), {}),
            f"phases.{name}": self.phases.get(name, {}),
        }
        places = tuple(place for place, changes in sections.items() if changes)
        if places not in self._built:
            phase = self.optim
            for place in places:
                phase = _changed(phase, sections[place], place)
            self._built[places] = phase
        return self._built[places]

    def fixed_norms(self, phase: OptimRecipe) -> frozenset[str]:
        """Return the selectors whose batch norms keep their statistics in a phase."""
        return frozenset((*phase.frozen_norms, *(("encoder",) if self.freeze_batch_norm else ())))

    @cached_property
    def _built(self) -> dict[tuple[str, ...], OptimRecipe]:
        """What ``phase`` has built, by the sections that take part: a plan asks for every step."""
        return {}

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and scalars, as JSON will hold them. Raises RecipeError for what it cannot hold."""
        try:
            values: dict[str, Any] = plain(dataclasses.asdict(self), "recipe")
        except StoreError as error:  # a method's own option, which was computed or has no type
            raise RecipeError(error.message.removeprefix("step record: "), hint=error.hint) from error
        return values

    def as_recorded(self) -> dict[str, Any]:
        """Return ``as_dict`` as records and keys hold it: without the fields that are newer, where at their defaults.

        ``read_recipe`` reads it. Records and keys were made before there was the choice, and what they stand for has
        not changed. For the same reason ``rates`` of encoder and classifier have their old names.
        """
        values = with_old_names(self.as_dict())
        values["optim"] = plain(self.optim.as_recorded(), "recipe.optim")
        if self.data.pad == DataRecipe.pad:
            del values["data"]["pad"]
        return {name: value for name, value in values.items() if value or name not in ("steps", "phases")}


def _changed(phase: OptimRecipe, changes: Mapping[str, Any], place: str) -> OptimRecipe:
    """Return a phase with some fields replaced; ``rates`` and ``decay`` are replaced selector by selector."""
    values = dataclasses.asdict(phase)
    # A length takes the place of the one before, which may be given in the other unit.
    if "iterations" in changes or "epochs" in changes:
        values |= {"epochs": None, "iterations": None}
    by_selector = {
        name: {**values[name], **changes[name]} for name in ("rates", "decay") if isinstance(changes.get(name), Mapping)
    }
    return load_strict(OptimRecipe, {**values, **changes, **by_selector}, "recipe", place)


def read_recipe(values: Any, place: str) -> Recipe:
    """Read a recipe as records hold it, older ones too. Raises RecipeError as ``load_strict`` does."""
    return load_strict(Recipe, with_current_names(values, place) if isinstance(values, Mapping) else values, place)


def load_strict(kind: type[T], values: Any, place: str, field: str = "") -> T:
    """Read a recipe, its section ``field``, or a method's options. Raises RecipeError as ``read_fields`` does."""
    return read_fields(kind, values, place, RecipeError, field)
