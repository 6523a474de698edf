"""Read many records fast: what each says of its run and step, and its counts as an array, without its losses.

A store may hold ten thousand records with matrices of 151 x 151 counts, and ``read_record`` takes milliseconds and up
to a megabyte for each. Here orjson parses the text, and NumPy holds the counts. A record that fails any check is read
again by ``read_record``, so that its errors are the same. One thing differs: orjson takes a whole number beyond 64
bits for a float, which matters in free mappings such as ``recipe`` alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from cispbench.results.record import MOST_PIXELS, SCHEMA, StepRecord, check_bytes, upgraded, without_checksum
from cispbench.results.record_fields import StepFacts, broken_facts
from cispbench.results.record_files import read_file, run_files
from cispbench.results.store import check_run, check_stored, read_record
from cispbench.splits.errors import StoreError
from cispbench.splits.strict_fields import read_fields

Counts = NDArray[np.int64]

_ALL = {entry.name for entry in fields(StepRecord)}
_FACTS = [entry.name for entry in fields(StepFacts)]
_SPACED = re.compile(rb'"\s+:')
_identity = attrgetter("run_key", "setting", "steps", "joint")


class Cost(NamedTuple):
    """What a step cost: seconds, and peaks in bytes (no device peak where there is no accelerator)."""

    train_seconds: float
    evaluate_seconds: float
    peak_host_bytes: int
    peak_device_bytes: int | None


class Scanned(NamedTuple):
    """A record: its ``facts``, its confusion matrix ``counts`` (C, C) int64, and the ``path`` of its file."""

    facts: StepFacts
    counts: Counts
    path: Path

    @property
    def imported(self) -> bool:
        """Whether the weights of the step were trained elsewhere."""
        return "imported" in self.facts.environment

    @property
    def cost(self) -> Cost:
        """The seconds and bytes that the step took."""
        timing, memory = self.facts.timing, self.facts.memory
        return Cost(timing.train_seconds, timing.evaluate_seconds, memory.peak_host_bytes, memory.peak_device_bytes)


def scan_finished(paths: Iterable[Path]) -> Iterator[Scanned]:
    """Yield, of ``Store.last_files()``, the records that end a finished run, one at a time.

    Raises StoreError naming a file that cannot be read, as ``Store.records`` does.
    """
    for path in paths:
        scanned = scan_record(path)
        if scanned.facts.finished:
            yield scanned


def scan_steps(last: Scanned) -> list[Scanned]:
    """Return the recorded steps of a run in their order, given its last one; steps that have no record are left out.

    Raises StoreError naming a file that cannot be read or belongs to another run, or the folder of a run whose records
    do not fit together.
    """
    folder = last.path.parent
    steps = [last if path == last.path else scan_record(path) for path in run_files(folder)]
    for step in steps:
        if _identity(step.facts) != _identity(last.facts):
            raise StoreError(
                f"{step.path} is of the run {step.facts.run_key[:10]}, and the last step beside it of "
                f"{last.facts.run_key[:10]}.",
                hint="Move it to a folder of its own.",
            )
    check_run(folder, [(step.facts, step.counts) for step in steps])
    return steps


def scan_record(path: Path) -> Scanned:
    """Read one record. Raises StoreError naming the file and what is wrong with it."""
    try:
        data = read_file(path)
        check_bytes(data)
        value = orjson.loads(data)
        _refuse_doubles(value, data)
        value = upgraded(without_checksum(value, data))
        facts, counts = _facts(value), _counts(value["confusion"], value["learning_order"])
    except (OverflowError, StoreError, TypeError, ValueError):
        return _in_full(path)  # which says what is wrong
    check_stored(path, facts, counts)
    return Scanned(facts, counts, path)


def _refuse_doubles(value: Any, data: bytes) -> None:
    """Raise ValueError where an object may have a key twice: orjson would take the last one.

    A colon follows every key. A layout with spaces before it, and a text that looks like a key, are left to the full
    reader.
    """
    if type(value) is not dict or data.count(b'":') != _keys(value) or _SPACED.search(data):
        raise ValueError("perhaps a key twice")


def _keys(value: Any) -> int:
    if type(value) is dict:
        return len(value) + sum(_keys(item) for name, item in value.items() if name != "confusion")
    return sum(map(_keys, value)) if type(value) is list and value and type(value[0]) in (dict, list) else 0


def _facts(value: Any) -> StepFacts:
    if type(value) is not dict or value.keys() != _ALL or type(value["schema"]) is not int or value["schema"] != SCHEMA:
        raise ValueError("another schema")
    facts = read_fields(StepFacts, {name: value[name] for name in _FACTS}, "")
    if any(broken_facts(facts)):
        raise ValueError("a broken rule")
    return facts


def _counts(rows: Any, order: Any) -> Counts:
    """Return the rows as an array. Raises ValueError, TypeError or OverflowError unless they are counts of all classes.

    Types are compared because NumPy would take true for 1 and round 1.5 down.
    """
    count = len(order)
    if set(map(type, order)) != {int} or order[0] != 0 or sorted(order) != list(range(count)):
        raise ValueError("no learning order")
    numbers = list(chain.from_iterable(rows))
    if len(rows) != count or any(len(row) != count for row in rows) or set(map(type, numbers)) != {int}:
        raise ValueError("no matrix of whole numbers")
    counts = np.array(numbers, dtype=np.int64).reshape(count, count)
    if counts.min() < 0 or counts.max() > MOST_PIXELS:
        raise ValueError("no count")
    return counts


def _in_full(path: Path) -> Scanned:
    record = read_record(path)
    return Scanned(StepFacts(**{name: getattr(record, name) for name in _FACTS}), record.matrix(), path)
