"""The record of one finished step: all that decided it, what it counted and what it cost, as versioned JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from cispbench.results.record_checks import check_record, plain
from cispbench.results.strict_fields import read_fields
from cispbench.splits.errors import StoreError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 2
# What a record of an older schema says of the fields that a later one has added.
ADDED: dict[int, dict[str, Any]] = {
    2: {"execution": {"devices": 1, "micro_batch": None}, "trained_for": None, "origin": "measured"},
}


@dataclass(frozen=True)
class MethodUsed:
    """The method with its version and the options it ran with."""

    name: str
    version: int
    options: dict[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", plain(self.options, "method.options"))


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
class Losses:
    """Every term of the loss at the logged ``iterations`` (the same number of values each), already weighted."""

    iterations: tuple[int, ...]
    terms: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Timing:
    """Seconds, and training images a second.

    ``resumed``: the training was interrupted and went on from a checkpoint. The seconds then add up what was done
    before that checkpoint and after it; what was lost between the checkpoint and the interruption is not counted.
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
    """How the step was trained: on how many ``devices``, with how many images at once on each (None: its share)."""

    devices: int
    micro_batch: int | None


@dataclass(frozen=True)
class TrainedFor:
    """The run that a step was trained for."""

    method: str
    setting: str
    seed: int
    run_key: str


@dataclass(frozen=True)
class StepFacts:
    """What the record of a step says but for its counts, losses and classes: enough for tables, and quick to read.

    ``key`` is the step's content key, ``previous_key`` that of the step before, ``run_key`` that of the whole run.
    ``recipe`` holds the recipe verbatim, ``quirks`` the departures from the papers that were on.
    ``trained_for``: the run whose training made the weights, None where that is not known (imported steps, and records
    of schema 1). ``origin``: measured here, submitted by somebody, or scored from a folder of predictions.
    """

    key: str
    previous_key: str | None
    run_key: str
    setting: str
    dataset: str
    scenario: str
    task: str
    order: str
    step: int
    steps: int
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

    def __post_init__(self) -> None:
        # As read back from JSON, so that a record equals its copy in the store: tuples outside, lists in free fields.
        object.__setattr__(self, "quirks", tuple(self.quirks))
        for name in ("recipe", "environment"):
            object.__setattr__(self, name, plain(getattr(self, name), name))

    @property
    def finished(self) -> bool:
        """Whether this is the last step of its run."""
        return self.step == self.steps - 1


@dataclass(frozen=True)
class StepRecord(StepFacts):
    """One finished step in full. Making one checks it: StoreError names the first field that breaks a rule.

    ``learning_order``: class numbers by class index, background first; ``classes``: the numbers this step learnt.
    ``confusion``: (C, C) counts of pixels over all classes of the data set in learning order, rows ground truth,
    void left out.
    """

    schema: int
    learning_order: tuple[int, ...]
    classes: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]
    losses: Losses

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_order", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "confusion", tuple(tuple(row) for row in self.confusion))
        check_record(self, SCHEMA)

    @property
    def shared(self) -> bool:
        """Whether the step was trained for another run, and taken over."""
        return self.trained_for is not None and self.trained_for.run_key != self.run_key

    def matrix(self) -> NDArray[np.int64]:
        """Return the confusion matrix as int64 (C, C)."""
        import numpy as np

        return np.asarray(self.confusion, dtype=np.int64)

    def to_json(self) -> str:
        """Return the record as JSON text: keys sorted, one row of the confusion matrix a line, newline at the end."""
        return _dump(plain(asdict(self), "record"), 0) + "\n"

    @classmethod
    def from_json(cls, text: str, place: str) -> StepRecord:
        """Read what ``to_json`` of this or an older version wrote, as a record of this version's schema.

        Raises StoreError naming ``place``, the field and the value.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, nesting without end
            raise StoreError(
                f"{place} is not valid JSON: {error}.", hint="Restore it from version control, or delete it and rerun."
            ) from error
        schema = value.get("schema") if isinstance(value, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise StoreError(
                f"{place}: schema is {schema}, and this version reads up to {SCHEMA}.", hint="Update cispbench."
            )
        try:
            return read_fields(cls, _upgrade(value), place)
        except StoreError as error:
            if error.message.startswith(place):
                raise
            raise StoreError(f"{place}: {error.message}", hint=error.hint) from error


def _upgrade(value: Any) -> Any:
    """Add what the later schemas have and this one lacks."""
    schema = value.get("schema") if isinstance(value, dict) else None
    if type(schema) is not int or not 1 <= schema < SCHEMA:
        return value
    later = {name: default for number, fields in ADDED.items() if number > schema for name, default in fields.items()}
    return {**later, **value, "schema": SCHEMA}


def confusion_rows(matrix: NDArray[np.integer[Any]]) -> tuple[tuple[int, ...], ...]:
    """Return an integer matrix (C, C) as the tuples that ``StepRecord.confusion`` holds."""
    return tuple(tuple(row) for row in matrix.tolist())


def _dump(value: Any, depth: int) -> str:
    """Write mappings with one key a line, lists of lists with one item a line, all else on one line."""
    if isinstance(value, dict) and value:
        lines = [f"{json.dumps(key)}: {_dump(value[key], depth + 1)}" for key in sorted(value)]
        opening, closing = "{", "}"
    elif isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        lines = [json.dumps(item, allow_nan=False) for item in value]
        opening, closing = "[", "]"
    else:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    pad = " " * (depth + 1)
    return f"{opening}\n" + ",\n".join(pad + line for line in lines) + f"\n{' ' * depth}{closing}"
