"""The fields of a step's record that are quick to read, and their rules beyond types; ``record`` has the whole."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Literal

from cispbench.splits.errors import StoreError

MOST = 1e15  # seconds, bytes or images: no step has more
BYTES_OF_A_PIXEL = 4  # of an exemplar: three of the image, one of the mask
_COUNTS = (
    "step", "seed", "iterations", "skipped_steps", "execution.devices", "execution.micro_batch", "method.version",
    "model.parameters", "data.train_images", "data.val_images", "timing.train_seconds", "timing.evaluate_seconds",
    "timing.wall_seconds", "timing.images_per_second", "memory.peak_host_bytes", "memory.peak_device_bytes",
)  # fmt: skip
_FILLED = (
    "key", "run_key", "setting", "dataset", "scenario", "task", "order", "profile", "method.name", "model.name",
)  # fmt: skip


OVER = " over "  # in titles, between a method and the one that it changes
_BASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.-]{0,63}")


def method_title(name: str, options: Mapping[str, Any]) -> str:
    """Return the name of a method in tables: "mib"; of one that changes another one, its base, "ewf over mib".

    Options that name no base leave the name as it is; records of others may hold anything.
    """
    base, below = options.get("base"), options.get("base_options")
    if not isinstance(base, str) or not isinstance(below, Mapping) or _BASE.fullmatch(base) is None:
        return name
    return f"{name}{OVER}{method_title(base, below)}"


def has_title(title: str, pattern: str) -> bool:
    """Whether a title, or the method's name alone, fits a pattern: "ewf" and "ewf over *" fit "ewf over mib"."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in (title, title.partition(OVER)[0]))


@dataclass(frozen=True)
class MethodUsed:
    """The method with its version and the options it ran with.

    ``code``: digest of the code that trained the step, that of the method of ``trained_for``; ``unknown`` where its
    source was not found, None for steps that were not trained here and in older records.
    """

    name: str
    version: int
    options: dict[str, Any]
    code: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", plain(self.options, "method.options"))

    @property
    def title(self) -> str:
        """The name in tables, see ``method_title``."""
        return method_title(self.name, self.options)


@dataclass(frozen=True)
class ModelUsed:
    """The model: its number of ``parameters`` at the end of the step, and the pretrained ``weights`` or ``none``."""

    name: str
    parameters: int
    weights: str
    weights_sha256: str | None


@dataclass(frozen=True)
class DataUsed:
    """The images: ``train_images`` of this step, ``list_sha256`` the digest of their ids, ``val_images`` tested on."""

    kind: Literal["full", "mini", "synthetic"]
    fingerprint: str
    train_images: int
    val_images: int
    list_sha256: str


@dataclass(frozen=True)
class ExemplarsUsed:
    """The memory of a step: how many training images of earlier steps, and the bytes of their pixels.

    The bytes are those of the decoded images with their masks, 8 bits for each of red, green, blue and label, so that
    they do not depend on how a data set stores its files.
    """

    images: int
    bytes: int


@dataclass(frozen=True)
class Losses:
    """Every term of the loss at the logged ``iterations`` (the same number of values each), already weighted."""

    iterations: tuple[int, ...]
    terms: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Timing:
    """Seconds, and training images a second.

    ``resumed``: the training was interrupted and went on from a checkpoint. The seconds then add up what was done
    before that checkpoint and after it; work lost between the checkpoint and the interruption is not counted.
    """

    train_seconds: float
    evaluate_seconds: float
    wall_seconds: float
    images_per_second: float
    resumed: bool


@dataclass(frozen=True)
class Memory:
    """Peaks in bytes; no device peak where there is no accelerator."""

    peak_host_bytes: int
    peak_device_bytes: int | None


@dataclass(frozen=True)
class GitState:
    """The commit that ran and whether files differed from it; None where it is no checkout."""

    commit: str | None
    dirty: bool | None


@dataclass(frozen=True)
class Execution:
    """How the step was trained: on how many ``devices``, with how many images at once on each (None: its share).

    ``compile``, ``tf32``, ``cudnn_benchmark``: what was switched on to be faster, at the cost of other rounding, in any
    part of the training. Before schema 5 there was none of them to switch on.
    """

    devices: int
    micro_batch: int | None
    compile: bool = False
    tf32: bool = False
    cudnn_benchmark: bool = False


@dataclass(frozen=True)
class TrainedFor:
    """The run that a step was trained for."""

    method: str
    setting: str
    seed: int
    run_key: str


@dataclass(frozen=True)
class StepFacts:
    """The fields of a step's record without its counts and losses: enough for tables, and quick to read.

    ``key`` is the step's content key, ``previous_key`` that of the step before, ``run_key`` that of the whole run.
    ``learning_order``: class numbers by class index, background first; ``classes``: the numbers this step learnt.
    ``recipe`` holds the recipe verbatim, ``quirks`` the departures from the papers that were on.
    ``trained_for``: the run whose training made the weights, None where that is not known (imported steps, and records
    of schema 1). ``origin``: measured here, submitted by somebody, or scored from a folder of predictions.
    ``exemplars``: None for a step without any; ``supervision``: the names of the companion maps that were read beside
    the images, such as saliency. Both were not recorded before schema 4, when the contract had neither.
    """

    key: str
    previous_key: str | None
    run_key: str
    setting: str
    dataset: str
    scenario: str
    task: str
    order: str
    learning_order: tuple[int, ...]
    step: int
    steps: int
    classes: tuple[int, ...]
    method: MethodUsed
    joint: bool
    profile: str
    model: ModelUsed
    seed: int
    data: DataUsed
    recipe: dict[str, Any]
    iterations: int
    timing: Timing
    memory: Memory
    skipped_steps: int
    environment: dict[str, Any]
    git: GitState
    quirks: tuple[str, ...]
    created: str
    execution: Execution
    trained_for: TrainedFor | None
    origin: Literal["measured", "submitted", "predictions"]
    exemplars: ExemplarsUsed | None
    supervision: tuple[str, ...]

    def __post_init__(self) -> None:
        # As read back from JSON, so that a record equals its copy in the store: tuples outside, lists in free fields.
        for name in ("learning_order", "classes", "quirks", "supervision"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("recipe", "environment"):
            object.__setattr__(self, name, plain(getattr(self, name), name))

    @property
    def finished(self) -> bool:
        """Whether this is the last step of its run."""
        return self.step == self.steps - 1


def broken_facts(record: StepFacts) -> Iterator[str]:
    """Yield the fields of ``record`` that break a rule, with their values."""
    for name in _FILLED:
        if not attrgetter(name)(record):
            yield f"{name} is empty"
    for name in _COUNTS:
        count = attrgetter(name)(record)
        if count is not None and not 0 <= count <= MOST:
            yield f"{name} is {str(count)[:24]}, not a number from 0 to {MOST:g}"
    yield from _broken_extras(record)
    order = record.learning_order
    if not order or order[0] != 0 or sorted(order) != list(range(len(order))):
        yield f"learning_order is {list(order)}, not 0 and then every class number once"
    if not record.classes or not set(record.classes) <= set(order[1:]):
        yield f"classes is {list(record.classes)}, not among the class numbers of learning_order"
    if record.step >= record.steps:
        yield f"step is {record.step}, but there are {record.steps} steps"
    if record.previous_key is not None and record.step == 0:
        yield f"previous_key is {record.previous_key!r} at step 0"
    if not _is_utc(record.created):
        yield f"created is {record.created!r}, not an ISO time in UTC such as 2025-01-31T12:00:00+00:00"


def _broken_extras(record: StepFacts) -> Iterator[str]:
    used = record.exemplars
    if used is not None:
        whole_pixels = used.bytes % BYTES_OF_A_PIXEL == 0 and used.bytes >= BYTES_OF_A_PIXEL * used.images
        if not (0 < used.images <= MOST and used.bytes <= MOST and whole_pixels):
            yield (
                f"exemplars is {used.images} images of {used.bytes} bytes; images count from 1, each has at least a "
                f"pixel, and a pixel {BYTES_OF_A_PIXEL} bytes"
            )
        if record.step == 0:
            yield f"exemplars is {used.images} images at step 0, which has no earlier ones"
    if len(set(record.supervision)) < len(record.supervision) or not all(record.supervision):
        yield f"supervision is {list(record.supervision)}, not names of maps, each once"


def _is_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False


def plain(value: Any, field: str) -> Any:
    """Return ``value`` as JSON holds it (tuples become lists). Raises StoreError naming a part it cannot hold."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        if value and all(type(item) is int for item in value):
            return list(value)
        return [plain(item, f"{field}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{field}.{key}") for key, item in value.items()}
    raise StoreError(
        f"step record: {field} is {value!r} ({type(value).__name__}), which JSON cannot hold.",
        hint="Use words, finite numbers, true or false, lists, and mappings with words as keys.",
    )
