"""What a step used besides its own images and labels: exemplars and companion maps, in records of schema 4."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cispbench.results.record import SCHEMA, StepRecord
from cispbench.results.record_fields import ExemplarsUsed
from cispbench.results.scan import scan_record
from cispbench.results.store import Store
from cispbench.splits.errors import StoreError

Maker = Callable[..., StepRecord]
USED = {"exemplars": ExemplarsUsed(100, 3_250_000), "supervision": ("saliency",)}


def test_what_a_step_used_is_written_and_read(make_record: Maker, tmp_path: Path) -> None:
    record = make_record(step=1, **USED)
    content = json.loads(record.to_json())
    assert content["exemplars"] == {"images": 100, "bytes": 3_250_000}
    assert content["supervision"] == ["saliency"]
    assert StepRecord.from_json(record.to_json(), "x") == record
    path = Store(tmp_path).write(record)
    facts = scan_record(path).facts
    assert (facts.exemplars, facts.supervision) == (USED["exemplars"], ("saliency",))


def test_a_record_of_schema_3_had_neither(make_record: Maker, tmp_path: Path) -> None:
    record = make_record(step=1)
    content = {name: value for name, value in record.content().items() if name not in USED}
    old = StepRecord.from_content(content | {"schema": 3}, "old")
    assert (old.schema, old.exemplars, old.supervision) == (SCHEMA, None, ())
    assert old == record


@pytest.mark.parametrize(
    ("step", "changes", "says"),
    [
        (0, {"exemplars": ExemplarsUsed(1, 1)}, "exemplars is 1 images at step 0"),
        (1, {"exemplars": ExemplarsUsed(0, 0)}, "exemplars is 0 images"),
        (1, {"exemplars": ExemplarsUsed(3, -1)}, "-1 bytes"),
        (1, {"supervision": ("saliency", "saliency")}, "each once"),
        (1, {"supervision": ("",)}, "supervision is"),
    ],
)
def test_what_cannot_be_is_refused(make_record: Maker, step: int, changes: dict[str, object], says: str) -> None:
    with pytest.raises(StoreError, match=says):
        make_record(step=step, **changes)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("exemplars", {"images": 100}, "exemplars.bytes is missing"),
        ("exemplars", 100, "exemplars is 100"),
        ("supervision", None, "supervision is"),
        ("supervision", ["saliency", 3], r"supervision\[1\] is 3"),
    ],
)
def test_the_reader_names_the_field(make_record: Maker, field: str, value: object, says: str) -> None:
    content = make_record(step=1, **USED).content() | {field: value}
    with pytest.raises(StoreError, match=says):
        StepRecord.from_content(content, "x")
