"""The record of one finished step: all that decided it, what it counted and what it cost, as versioned JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cispbench.results.checked_json import (
    ChecksumError,
    add_checksum,
    has_checksum,
    loads_once,
    verify_checksum,
)
from cispbench.results.record_fields import Losses, StepFacts, broken_facts, plain
from cispbench.splits.errors import StoreError
from cispbench.splits.strict_fields import read_fields

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 5
# What a record of an older schema says of the fields that a later one has added.
ADDED: dict[int, dict[str, Any]] = {
    2: {"execution": {"devices": 1, "micro_batch": None}, "trained_for": None, "origin": "measured"},
    3: {},
    4: {"exemplars": None, "supervision": ()},
    5: {},
}
# The same of the fields within others.
ADDED_WITHIN: dict[int, dict[str, dict[str, Any]]] = {
    5: {"execution": {"compile": False, "tf32": False, "cudnn_benchmark": False}},
}
CHECKED = 3  # from this schema on a record's file carries a checksum
MOST_PIXELS = 10**15  # of one count: sums over the classes stay exact as int64, and no test has so many
_RESTORE = "Restore it from version control, or start its run again, which sets it aside and writes it anew."


class DamagedRecordError(StoreError):
    """A record whose file is not what was written."""


@dataclass(frozen=True)
class StepRecord(StepFacts):
    """One finished step in full. Making one checks it: StoreError names every field that breaks a rule.

    ``confusion``: counts (C, C) of pixels over all classes of the data set in learning order, rows are the ground
    truth, void left out.
    """

    schema: int
    confusion: tuple[tuple[int, ...], ...]
    losses: Losses

    def __post_init__(self) -> None:
        super().__post_init__()
        # Tuples, as read back from JSON: a record equals its copy in the store.
        object.__setattr__(self, "confusion", tuple(tuple(row) for row in self.confusion))
        found = [] if self.schema == SCHEMA else [f"schema is {self.schema}, not {SCHEMA}"]
        found += [*broken_facts(self), *_confusion(self), *_losses(self)]
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

    def content(self) -> dict[str, Any]:
        """Return the record as JSON holds it."""
        content: dict[str, Any] = plain(asdict(self), "record")
        return content

    def to_json(self) -> bytes:
        """Return the bytes of the record's file: its checksum, then keys sorted, a row of the matrix a line.

        Raises StoreError for a text that holds half a character, as a broken name on the command line does.
        """
        content = self.content()
        data = add_checksum(_dump(content, 0) + "\n")
        try:
            check_words(content, data)
        except ValueError as error:
            raise StoreError(
                f"step record: a text cannot be written: {error}.", hint="Rename what it names."
            ) from error
        return data

    @classmethod
    def from_json(cls, data: bytes, place: str) -> StepRecord:
        """Read what ``to_json`` of this or an older version wrote, as a record of this version's schema.

        Raises StoreError naming ``place``, the field and the value; DamagedRecordError for a checksum that does not
        match, and for text that is not JSON.
        """
        try:
            check_bytes(data)
            value = loads_once(data.decode())
            check_words(value, data)
            value = without_checksum(value, data)
        except ChecksumError as error:
            raise DamagedRecordError(f"{place}: {error}.", hint=_RESTORE) from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, nesting without end
            raise DamagedRecordError(f"{place} is not valid JSON: {error}.", hint=_RESTORE) from error
        return cls.from_content(value, place)

    @classmethod
    def from_content(cls, value: Any, place: str) -> StepRecord:
        """Read what ``content`` of this or an older version returned. Raises StoreError as ``from_json`` does."""
        schema = value.get("schema") if isinstance(value, dict) else None
        if type(schema) is int and schema > SCHEMA:
            raise StoreError(
                f"{place}: schema is {schema}, and this version reads up to {SCHEMA}.", hint="Update cispbench."
            )
        return read_fields(cls, upgraded(value), place)


def check_bytes(data: bytes) -> None:
    """Raise ChecksumError if the bytes of a record's file carry a checksum and it is wrong."""
    if has_checksum(data):
        verify_checksum(data)


def check_words(value: Any, data: bytes) -> None:
    """Raise ValueError if a text of a parsed record holds half a character: it could never be printed or written."""
    if b"\\ud" in data.lower():
        json.dumps(value, ensure_ascii=False).encode()


def without_checksum(value: Any, data: bytes) -> Any:
    """Return a parsed record without its checksum. Raises ChecksumError where there has to be one and is none."""
    if not isinstance(value, dict):
        return value
    if has_checksum(data):
        return {name: item for name, item in value.items() if name != "sha256"}
    # A damaged first line hides the checksum and nothing else: the schema still says that there was one.
    schema = value.get("schema")
    if "sha256" in value or (type(schema) is int and CHECKED <= schema <= SCHEMA):
        raise ChecksumError("it carries no checksum that can be read")
    return value


def upgraded(value: Any) -> Any:
    """Return a parsed record of an older schema as one of this version's; all else unchanged."""
    schema = value.get("schema") if isinstance(value, dict) else None
    if type(schema) is int and schema >= 1:
        for added in range(schema + 1, SCHEMA + 1):
            value = {**ADDED[added], **value, "schema": added}
            for name, fields in ADDED_WITHIN.get(added, {}).items():
                if isinstance(value.get(name), dict):  # all else is an error, which the reader names
                    value[name] = {**fields, **value[name]}
    return value


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
            if value > MOST_PIXELS:
                yield f"confusion[{place}][{column}] is {str(value)[:24]}, and no test has more than {MOST_PIXELS}"
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
