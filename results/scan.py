"""Read many records fast: what each says of its run and step, and its counts as an array, without its losses.

A store may hold ten thousand records with matrices of 151 x 151 counts, and ``read_record`` takes milliseconds and up
to a megabyte for each. Here orjson parses the text, and NumPy holds the counts. A record that fails any check is read
again by ``read_record``, so that its errors are the same. One thing differs: orjson takes a whole number beyond 64
bits for a float, which matters in free mappings such as ``recipe`` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from cispbench.results.record import SCHEMA, StepRecord
from cispbench.results.record_fields import StepFacts, broken_facts
from cispbench.results.store import read_record, step_number
from cispbench.splits.errors import StoreError
from cispbench.splits.strict_fields import read_fields

Counts = NDArray[np.int64]

_ALL = {entry.name for entry in fields(StepRecord)}
_FACTS = [entry.name for entry in fields(StepFacts)]
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

    Raises StoreError naming a file that cannot be read, or that belongs to another run.
    """
    # By number, not by name: step-10 comes after step-9.
    paths = sorted(last.path.parent.glob("step-*.json"), key=step_number)
    steps = [last if path == last.path else scan_record(path) for path in paths]
    for step in steps:
        if _identity(step.facts) != _identity(last.facts):
            raise StoreError(
                f"{step.path} is of the run {step.facts.run_key[:10]}, and the last step beside it of "
                f"{last.facts.run_key[:10]}.",
                hint="Move it to a folder of its own.",
            )
    return steps


def scan_record(path: Path) -> Scanned:
    """Read one record. Raises StoreError naming the file and what is wrong with it."""
    try:
        value = orjson.loads(path.read_bytes())
        return Scanned(_facts(value), _counts(value["confusion"], value["learning_order"]), path)
    except (OSError, OverflowError, StoreError, TypeError, ValueError):
        return _in_full(path)  # which says what is wrong, or takes it: a record of an older schema, for example


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
    if counts.min() < 0:
        raise ValueError("a count below 0")
    return counts


def _in_full(path: Path) -> Scanned:
    record = read_record(path)
    try:
        return Scanned(StepFacts(**{name: getattr(record, name) for name in _FACTS}), record.matrix(), path)
    except OverflowError as error:
        raise StoreError(f"{path}: confusion holds a count beyond 64 bits.") from error
