"""The rules of a step record beyond the types of its fields."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from operator import attrgetter

from cispbench.results.record_fields import StepFacts, StepFields
from cispbench.splits.errors import StoreError

MOST = 1e15  # seconds, bytes or images: no step has more
_COUNTS = (
    "step", "seed", "iterations", "skipped_steps", "execution.devices", "execution.micro_batch", "method.version",
    "model.parameters", "data.train_images", "data.val_images", "timing.train_seconds", "timing.evaluate_seconds",
    "timing.wall_seconds", "timing.images_per_second", "memory.peak_host_bytes", "memory.peak_device_bytes",
)  # fmt: skip
_FILLED = (
    "key", "run_key", "setting", "dataset", "scenario", "task", "order", "profile", "method.name", "model.name",
)  # fmt: skip


def check_record(record: StepFields, schema: int) -> None:
    """Raise StoreError naming every field of ``record`` that breaks a rule, with its value."""
    found = [] if record.schema == schema else [f"schema is {record.schema}, not {schema}"]
    found += [*broken_facts(record), *_classes(record), *_confusion(record), *_losses(record)]
    if found:
        raise StoreError(f"step record: {'; '.join(found)}.")


def broken_facts(record: StepFacts) -> Iterator[str]:
    """Yield the fields of ``record`` that break a rule, with their values; only what ``StepFacts`` has is looked at."""
    for name in _FILLED:
        if not attrgetter(name)(record):
            yield f"{name} is empty"
    for name in _COUNTS:
        count = attrgetter(name)(record)
        if count is not None and not 0 <= count <= MOST:
            yield f"{name} is {str(count)[:24]}, not a number from 0 to {MOST:g}"
    if record.step >= record.steps:
        yield f"step is {record.step}, but there are {record.steps} steps"
    if record.previous_key is not None and record.step == 0:
        yield f"previous_key is {record.previous_key!r} at step 0"
    if not _is_utc(record.created):
        yield f"created is {record.created!r}, not an ISO time in UTC such as 2025-01-31T12:00:00+00:00"


def _is_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False


def _classes(record: StepFields) -> Iterator[str]:
    order = record.learning_order
    if not order or order[0] != 0 or sorted(order) != list(range(len(order))):
        yield f"learning_order is {list(order)}, not 0 and then every class number once"
    if not record.classes or not set(record.classes) <= set(order[1:]):
        yield f"classes is {list(record.classes)}, not among the class numbers of learning_order"


def _confusion(record: StepFields) -> Iterator[str]:
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


def _losses(record: StepFields) -> Iterator[str]:
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
