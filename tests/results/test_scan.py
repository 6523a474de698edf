"""The fast reader says what the full one says, and leaves to it whatever it is not sure of."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispbench.results import scan
from cispbench.results.checked_json import add_checksum
from cispbench.results.record import ADDED, StepRecord
from cispbench.results.scan import scan_finished, scan_record, scan_steps
from cispbench.results.store import Store, read_record
from cispbench.splits.errors import StoreError

Maker = Callable[..., StepRecord]
OLD = Path(__file__).parent / "record_schema_1.json"


@pytest.fixture
def written(tmp_path: Path, make_record: Maker) -> Path:
    """The last record of a run of two steps, with counts that are all different."""
    store = Store(tmp_path)
    matrix = tuple(tuple(range(21 * row, 21 * row + 21)) for row in range(21))
    store.write(make_record("overlapped-19-1", step=0, confusion=matrix))
    return store.write(make_record("overlapped-19-1", step=1, confusion=matrix))


def refuse(path: Path) -> Any:
    raise AssertionError(f"{path} was read in full")


def test_a_record_is_read_as_the_full_reader_does(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = read_record(written)
    monkeypatch.setattr(scan, "read_record", refuse)
    scanned = scan_record(written)
    assert np.array_equal(scanned.counts, record.matrix())
    assert scanned.counts.dtype == np.int64
    for name, value in vars(scanned.facts).items():
        assert value == getattr(record, name), name
    assert scanned.facts.finished


def test_the_steps_of_a_run_come_in_their_order(tmp_path: Path, make_record: Maker, monkeypatch: Any) -> None:
    store = Store(tmp_path)
    records = [
        make_record("overlapped-5-1", step=step, iterations=step, environment={"imported": {}} if step == 2 else {})
        for step in (15, 2, 10, 0)
    ]
    for record in records:
        store.write(record)
    monkeypatch.setattr(scan, "read_record", refuse)
    (last,) = scan_finished(store.last_files())
    steps = scan_steps(last)
    assert [entry.facts.step for entry in steps] == [0, 2, 10, 15]
    assert [entry.facts.key for entry in steps] == ["key0", "key2", "key10", "key15"]
    assert [entry.imported for entry in steps] == [False, True, False, False]
    assert np.array_equal(steps[1].counts, records[1].matrix())
    timing, memory = records[0].timing, records[0].memory
    wanted = (timing.train_seconds, timing.evaluate_seconds, memory.peak_host_bytes, memory.peak_device_bytes)
    assert {tuple(entry.cost) for entry in steps} == {wanted}


def test_only_finished_runs_are_looked_at(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    assert list(scan_finished(store.last_files())) == []
    store.write(make_record(step=4))
    store.write(make_record(step=5, run_key="b" * 16, seed=1))
    assert [entry.facts.seed for entry in scan_finished(store.last_files())] == [1]


def signed(data: bytes) -> bytes:
    """Return the text of a record, changed, with the right checksum."""
    return add_checksum(re.sub(rb'\A\{\n "sha256": .*\n', b"{\n", data).decode())


def test_another_layout_is_read_all_the_same(written: Path) -> None:
    before, steps = scan_record(written), scan_steps(scan_record(written))
    for path in written.parent.glob("*.json"):
        content = read_record(path).content()
        path.write_bytes(signed(json.dumps(content, indent=1).encode()))
    after = scan_record(written)
    assert after.facts == before.facts
    assert np.array_equal(after.counts, before.counts)
    for old, new in zip(steps, scan_steps(after), strict=True):
        assert (old.facts, old.imported, old.cost) == (new.facts, new.imported, new.cost)
        assert np.array_equal(old.counts, new.counts)


def test_records_of_older_schemas_are_read_as_fast(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, content = read_record(written), read_record(written).content()
    monkeypatch.setattr(scan, "read_record", refuse)
    for schema in (2, 1):
        written.write_text(json.dumps({**content, "schema": schema}))
        scanned = scan_record(written)
        assert all(value == getattr(record, name) for name, value in vars(scanned.facts).items())
        assert np.array_equal(scanned.counts, record.matrix())
        content = {name: value for name, value in content.items() if name not in ADDED[2]}


def edited(path: Path, **changes: Any) -> None:
    """Change fields of a record and keep its layout, but for the values."""
    text = path.read_text()
    for name, value in changes.items():
        lines = text.splitlines(keepends=True)
        (place,) = [n for n, line in enumerate(lines) if line.startswith(f' "{name}": ')]
        lines[place] = f' "{name}": {value},\n'
        text = "".join(lines)
    path.write_bytes(signed(text.encode()))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": '"0"'}, {"seed": "true"}, {"seed": "-1"}, {"recipe": '{"lr": NaN}'}, {"created": '"yesterday"'},
        {"created": '"2025-01-31T12:00:00"'}, {"step": "7"}, {"steps": "0"}, {"joint": "0"}, {"schema": "99"},
        {"profile": "null"}, {"quirks": "7"}, {"learning_order": "[0, 1]"}, {"origin": '"invented"'},
    ],
)  # fmt: skip
def test_a_damaged_field_is_refused_as_the_full_reader_does(written: Path, changes: dict[str, str]) -> None:
    edited(written, **changes)
    with pytest.raises(StoreError) as full:
        read_record(written)
    with pytest.raises(StoreError) as fast:
        scan_record(written)
    assert str(fast.value) == str(full.value)


def repeat_a_class(data: bytes) -> bytes:
    return re.sub(rb'("learning_order": \[0, 1, )2', rb"\g<1>1", data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"\xef\xbb\xbf" + data, repeat_a_class,
        lambda data: data.replace(b'"mib"', b'"m\xed\xa0\x80b"'), lambda data: data.replace(b'"mib"', b'"mib\xff"'),
        lambda data: re.sub(rb'"schema": \d+', b'"schema": 2.0', data),
        lambda data: data.replace(b"{", b'{"more": 1,', 1), lambda data: data[:-3] + b',\n "confusion": []\n}\n',
        lambda data: data[:-3] + b',\n "confusion": [\n  [7]\n ]\n}\n',
        lambda data: re.sub(rb'"train_seconds": [\d.]+', b'"train_seconds": 1e999', data),
        lambda data: re.sub(rb'"train_seconds": [\d.]+', b'"train_seconds": 1e308', data),
        lambda data: re.sub(rb'"train_seconds": [\d.]+', b'"train_seconds": ' + b"9" * 400, data),
        lambda data: re.sub(rb'"train_seconds": [\d.]+', b'"train_seconds": null', data),
        lambda data: re.sub(rb'"seed": \d+', b'"seed": ' + b"9" * 5000, data),
        lambda data: re.sub(rb'"origin"', b'"more": ' + b"[" * 100_000 + b"]" * 100_000 + b', "origin"', data),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["step-1.json", "step-0.json"])
def test_what_the_full_reader_refuses_is_refused(written: Path, spoil: Callable[[bytes], bytes], name: str) -> None:
    path, scanned = written.with_name(name), scan_record(written)
    spoilt = spoil(path.read_bytes())
    assert spoilt != path.read_bytes()
    # Signed where it still is a text, so that more than the checksum is looked at.
    with contextlib.suppress(ValueError):
        spoilt = signed(spoilt)
    path.write_bytes(spoilt)
    with pytest.raises(StoreError) as full:
        read_record(path)
    with pytest.raises(StoreError) as fast:
        scan_record(path) if path == written else scan_steps(scanned)
    assert str(fast.value) == str(full.value)
    assert str(path) in str(fast.value)


@pytest.mark.parametrize(
    "changes",
    [{"step": "7"}, {"steps": "1"}, {"joint": "0"}, {"joint": "true"}, {"schema": "99"}, {"recipe": '{"lr": NaN}'},
     {"timing": "7"}, {"memory": "{}"}, {"learning_order": "[0, 1]"}, {"key": "7"}],
)  # fmt: skip
def test_an_earlier_step_that_is_damaged_is_named(written: Path, changes: dict[str, str]) -> None:
    scanned, path = scan_record(written), written.with_name("step-0.json")
    text = path.read_text()
    for name in set(changes) & {"timing", "memory", "recipe"}:  # these are spread over several lines
        text = re.sub(rf' "{name}": \{{\n[^}}]*\}},\n', f' "{name}": {{}},\n', text)
    path.write_bytes(signed(text.encode()))
    edited(path, **changes)
    with pytest.raises(StoreError) as caught:
        scan_steps(scanned)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" [0, 1,", " [0, -1,"), (" [0, 1,", " [0, 1.5,"), (" [0, 1,", " [0, 1"), (" [0, 1,", " [0, 1, ,"),
        (" [0, 1,", " [0, true,"), (" [0, 1,", " [0, [1],"), (" [0, 1,", " [1,"), (" [0, 1,", " [0, 1, 1,"),
        (" [0, 1,", " 0, 1,"), ("],\n  [21,", ", 21], ["), (" 20],\n", " ],\n"), (" [0, 1,", " [0, 1e3,"),
        (" 20],\n  [21,", " 20,\n  21,"), (" [0, 1,", " [[0, 1],"), (" [0, 1,", " [0, 1]\n, [1,"),
        (" [0, 1,", " [0, 01,"), (" [0, 1,", " [0,1 1,"), (" [0, 1,", " 0 [0, 1,"), ("  [0, 1,", " 7 [, 1,"),
        (" 20],\n", " 20],7\n"),
    ],
)  # fmt: skip
def test_a_damaged_matrix_is_refused(written: Path, old: str, new: str) -> None:
    before, rows, after = written.read_text().partition('"learning_order"')
    assert before.count(old) == 1
    written.write_bytes(signed((before.replace(old, new) + rows + after).encode()))
    with pytest.raises(StoreError) as full:
        read_record(written)
    with pytest.raises(StoreError) as fast:
        scan_record(written)
    assert str(fast.value) == str(full.value)
    assert str(written) in str(fast.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", None])
def test_a_file_that_is_no_record_is_named(written: Path, content: bytes | None) -> None:
    data = written.read_bytes()
    written.write_bytes(data[: len(data) // 2] if content is None else content)
    with pytest.raises(StoreError) as caught:
        list(scan_finished(Store(written.parents[5]).last_files()))
    assert str(written) in str(caught.value)


def test_a_count_beyond_reason_is_refused(written: Path) -> None:
    content = read_record(written).content()
    for number in (2**49, 2**53, 2**64, 10**30):
        content["confusion"][0][0] = number
        written.write_bytes(signed(json.dumps(content, indent=1).encode()))
        if number < 10**15:
            assert scan_record(written).counts[0, 0] == number
        else:
            with pytest.raises(StoreError, match=r"confusion\[0\]\[0\] is .*(no test has more|up to 9223372036854)"):
                scan_record(written)


def test_a_step_of_another_run_beside_is_named(written: Path) -> None:
    other = written.with_name("step-0.json")
    edited(other, run_key=f'"{read_record(other).run_key[:10]}-other"')
    with pytest.raises(StoreError, match="is of the run ") as caught:
        scan_steps(scan_record(written))
    assert str(other) in str(caught.value)


@given(st.lists(st.lists(st.integers(0, 10**15) | st.integers(0, 20), min_size=4, max_size=4), min_size=4, max_size=4))
def test_any_matrix_survives(rows: list[list[int]]) -> None:
    assert scan._counts(rows, [0, 3, 1, 2]).tolist() == rows
    for order in ([0, 1, 2], [0, 1, 2, 3, 4]):
        with pytest.raises(ValueError):
            scan._counts(rows, order)
