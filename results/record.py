"""The record of one finished step: all that decided it, what it counted and what it cost, as versioned JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cispbench.results.record_fields import Losses, StepFacts, broken_facts, plain
from cispbench.splits.errors import StoreError
from cispbench.splits.strict_fields import read_fields

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 2
# What a record of an older schema says of the fields that a later one has added.
ADDED: dict[int, dict[str, Any]] = {
    2: {"execution": {"devices": 1, "micro_batch": None}, "trained_for": None, "origin": "measured"},
}


@dataclass(frozen=True)
class StepRecord(StepFacts):
    """One finished step in full. Making one checks it: StoreError names every field that breaks a rule.

    ``learning_order``: class numbers by class index, background first. ``classes``: the numbers this step learnt.
    ``confusion``: counts (C, C) of pixels over all classes of the data set in learning order, rows are the ground
    truth, void left out.
    """

    schema: int
    learning_order: tuple[int, ...]
    classes: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]
    losses: Losses

    def __post_init__(self) -> None:
        super().__post_init__()
        # Tuples, as read back from JSON: a record equals its copy in the store.
        for name in ("learning_order", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "confusion", tuple(tuple(row) for row in self.confusion))
        found = [] if self.schema == SCHEMA else [f"schema is {self.schema}, not {SCHEMA}"]
        found += [*broken_facts(self), *_classes(self), *_confusion(self), *_losses(self)]
        if found:
            raise StoreError(f"step record: {'; '.join(found)}.")

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
        if type(schema) is int and schema > SCHEMA:
            raise StoreError(
                f"{place}: schema is {schema}, and this version reads up to {SCHEMA}.", hint="Update cispbench."
            )
        if type(schema) is int and schema >= 1:
            for added in range(schema + 1, SCHEMA + 1):
                value = {**ADDED[added], **value, "schema": added}
        return read_fields(cls, value, place)


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


def _classes(record: StepRecord) -> Iterator[str]:
    order = record.learning_order
    if not order or order[0] != 0 or sorted(order) != list(range(len(order))):
        yield f"learning_order is {list(order)}, not 0 and then every class number once"
    if not record.classes or not set(record.classes) <= set(order[1:]):
        yield f"classes is {list(record.classes)}, not among the class numbers of learning_order"


def _confusion(record: StepRecord) -> Iterator[str]:
    count = len(record.learning_order)
    rows = record.confusion
    if len(rows) != count or any(len(row) != count for row in rows):
        width = len(rows[0]) if rows else 0
        yield f"confusion has {len(rows)} rows, the first of {width} counts, not {count} x {count}"
    for place, row in enumerate(rows):
        for column, value in enumerate(row):
            if type(value) is not int or value < 0:
                yield f"confusion[{place}][{column}] is {value!r}, not a count"
                return


def _losses(record: StepRecord) -> Iterator[str]:
    logged = record.losses.iterations
    if any(value < 0 for value in logged) or list(logged) != sorted(set(logged)):
        yield f"losses.iterations is {list(logged)[:10]}, not rising counts"
    for name, values in record.losses.terms.items():
        if len(values) != len(logged):
            yield f"losses.terms.{name} has {len(values)} values for {len(logged)} iterations"
        for value in values:
            if not math.isfinite(value):
                yield f"losses.terms.{name} holds {value}, not a finite number"
                break
