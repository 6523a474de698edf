"""Read many records fast: what each says of its run and step, and its counts as an array, without its losses.

A store may hold ten thousand records with matrices of 151 x 151 counts. Read in full, each costs milliseconds and, as
Python numbers, up to a megabyte. Here the matrix is cut out of the text and read by numpy; a record that does not look
as ``StepRecord.to_json`` writes it is read in full, so that its errors are those of ``read_record``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from cispbench.results.record import SCHEMA, StepRecord
from cispbench.results.record_checks import MOST, broken_facts
from cispbench.results.record_fields import StepFacts
from cispbench.results.store import read_record, step_number
from cispbench.splits.errors import StoreError
from cispbench.splits.strict_fields import read_fields

Counts = NDArray[np.int64]

# The layout of to_json. No text of a record holds a bare line feed, so neither mark can lie within one.
_OPENING, _CLOSING = b'\n "confusion": [\n', b"\n ]"
_FIELDS = {entry.name for entry in fields(StepRecord)}
_KEPT = 2**24  # bytes, more than what reading a record takes
_LARGEST, _LONGEST = 2**53, 16  # beyond this number, of so many digits, counts are not exact as float64


class Scanned(NamedTuple):
    """A record: its ``facts``, its confusion matrix ``counts`` (C, C) int64, and the ``path`` of its file."""

    facts: StepFacts
    counts: Counts
    path: Path


class Cost(NamedTuple):
    """What a step cost: seconds, and peaks in bytes (no device peak where there is no accelerator)."""

    train_seconds: float
    evaluate_seconds: float
    peak_host_bytes: int
    peak_device_bytes: int | None


class StepCounts(NamedTuple):
    """A step of a run, its counts (C, C) int64, and its cost; ``imported``: no training of ours made its weights."""

    step: int
    key: str
    counts: Counts
    imported: bool
    cost: Cost


def scan_finished(paths: Iterable[Path]) -> Iterator[Scanned]:
    """Yield, of ``Store.last_files()``, the records that end a finished run, one at a time.

    Raises StoreError naming a file that cannot be read, as ``Store.records`` does.
    """
    # What a record took lies at the top of the heap, and glibc gives it back to the system at once, only to ask for it
    # again: a tenth of the whole cost. Once a larger block has come and gone, it keeps up to twice as much.
    np.empty(_KEPT, dtype=np.uint8)
    for path in paths:
        scanned = scan_record(path)
        if scanned.facts.finished:
            yield scanned


def scan_record(path: Path) -> Scanned:
    """Read one record. Raises StoreError naming the file and what is wrong with it."""
    value, counts = _read(path)
    if counts is not None:
        try:
            facts = _facts(value, path)
        except (StoreError, TypeError, ValueError):
            pass  # the full reader says what is wrong, or knows better
        else:
            return Scanned(facts, counts, path)
    return _in_full(read_record(path), path)


def scan_steps(last: Scanned) -> list[StepCounts]:
    """Return the recorded steps of a run in their order, given its last one; steps that have no record are left out.

    Raises StoreError naming a file that cannot be read, or that belongs to another run.
    """
    paths = sorted(last.path.parent.glob("step-*.json"), key=step_number)
    return [_counted(last) if path == last.path else _step(path, last.facts) for path in paths]


def _counted(scanned: Scanned) -> StepCounts:
    facts = scanned.facts
    timing, memory = facts.timing, facts.memory
    cost = Cost(timing.train_seconds, timing.evaluate_seconds, memory.peak_host_bytes, memory.peak_device_bytes)
    return StepCounts(facts.step, facts.key, scanned.counts, "imported" in facts.environment, cost)


def _step(path: Path, run: StepFacts) -> StepCounts:
    """Read and check what is needed of an earlier step alone; where its text is unusual, read the whole record."""
    value, counts = _read(path)
    try:
        identity, found = _identity(value), _partly(value, counts)
    except (KeyError, TypeError, ValueError):
        scanned = _in_full(read_record(path), path)
        identity, found = _identity(vars(scanned.facts)), _counted(scanned)
    if identity != _identity(vars(run)):
        raise StoreError(
            f"{path} is of the run {str(identity[0])[:10]}, and the last step beside it of {run.run_key[:10]}.",
            hint="Move it to a folder of its own.",
        )
    return found


def _identity(value: dict[str, Any]) -> tuple[str, str, int, bool]:
    return value["run_key"], value["setting"], value["steps"], value["joint"]


def _partly(value: dict[str, Any], counts: Counts | None) -> StepCounts:
    timing, memory, step, key = value["timing"], value["memory"], value["step"], value["key"]
    cost = Cost(
        timing["train_seconds"], timing["evaluate_seconds"], memory["peak_host_bytes"], memory["peak_device_bytes"]
    )
    known: list[Any] = list(cost[:3]) + ([] if cost[3] is None else [cost[3]])
    numbers = all(type(number) in (int, float) and 0 <= number <= MOST for number in known)
    typed = type(key) is str and type(step) is int and type(value["joint"]) is bool
    if counts is None or not numbers or not typed or not 0 <= step < value["steps"]:
        raise ValueError(step)
    return StepCounts(step, key, counts, "imported" in value["environment"], cost)


def _in_full(record: StepRecord, path: Path) -> Scanned:
    facts = StepFacts(**{entry.name: getattr(record, entry.name) for entry in fields(StepFacts)})
    try:
        return Scanned(facts, record.matrix(), path)
    except OverflowError as error:
        raise StoreError(f"{path}: confusion holds a count beyond 64 bits.") from error


def _read(path: Path) -> tuple[dict[str, Any], Counts | None]:
    """Return a record without its counts, and the counts; None where the text is not laid out as ``to_json`` does."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}.", hint="Restore it, or delete it and rerun.") from error
    start = data.find(_OPENING)
    end = data.find(_CLOSING, start)
    if start < 0 or end < 0:
        return {}, None
    start += len(_OPENING)
    try:
        value = json.loads((data[: start - 1] + data[end + 2 :]).decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return {}, None
    if not isinstance(value, dict) or value.keys() != _FIELDS or data.find(b'"confusion"', end) >= 0:
        return {}, None
    schema, order = value["schema"], value["learning_order"]
    numbers = isinstance(order, list) and all(type(number) is int for number in order)
    if type(schema) is not int or schema != SCHEMA or value["confusion"] != [] or not numbers:
        return {}, None
    if sorted(order) != list(range(len(order))) or order[:1] != [0]:
        return {}, None
    return value, _counts(data[start:end], len(order))


def _counts(text: bytes, count: int) -> Counts | None:
    """Return ``count`` rows of ``count`` numbers each, or None if the text is anything else."""
    if not count or len(text) < count * (3 * count + 2):  # without its digits a row has as many characters
        return None
    characters = np.frombuffer(text, dtype=np.uint8)
    layout, opening = _layout(count)
    digits = characters - ord("0")  # what is below "0" wraps around
    marks = np.flatnonzero(digits > 9)
    if marks.size != layout.size or (characters[marks] != layout).any():
        return None
    starts = marks[opening] + 1
    lengths = marks[opening + 1] - starts
    # Each number is there and fits, and no digit lies elsewhere.
    if lengths.min() < 1 or lengths.max() > _LONGEST or marks.size + lengths.sum() != characters.size:
        return None
    numbers = digits[starts].astype(np.int64)
    place, longer = 1, np.flatnonzero(lengths > 1)
    if not numbers[longer].all():  # a leading zero is no JSON
        return None
    while longer.size:
        numbers[longer] = 10 * numbers[longer] + digits[starts[longer] + place]
        place += 1
        longer = longer[lengths[longer] > place]
    return numbers.reshape(count, count) if numbers.max() < _LARGEST else None


@cache
def _layout(count: int) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """Return the characters of so many rows but for their digits, and the places among them of those before numbers."""
    row = b"  [" + b", " * (count - 1) + b"]"
    characters = np.frombuffer(b",\n".join([row] * count), dtype=np.uint8)
    opens = (characters == ord("[")) | (characters == ord(" "))
    closes = (characters == ord("]")) | (characters == ord(","))
    return characters, np.flatnonzero(opens[:-1] & closes[1:])


def _facts(value: dict[str, Any], path: Path) -> StepFacts:
    kept = {entry.name: value[entry.name] for entry in fields(StepFacts) if entry.name in value}
    facts = read_fields(StepFacts, kept, str(path))
    if broken := list(broken_facts(facts)):
        raise ValueError(broken)
    return facts


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)
