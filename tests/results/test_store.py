"""The store: where records lie, that they are written once, and that a broken file is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cispbench.results.record import StepRecord
from cispbench.results.record_fields import ModelUsed
from cispbench.results.store import Store
from cispbench.splits.errors import StoreError

Maker = Callable[..., StepRecord]


def test_a_record_lies_where_its_fields_say(tmp_path: Path, make_record: Maker) -> None:
    path = Store(tmp_path).write(make_record("voc:disjoint-18-2", step=1))
    assert path == tmp_path / "runs/voc/voc_disjoint-18-2/mib/paper-segmenter-tiny-seed0-0123456789/step-1.json"
    assert path.is_file()


def test_odd_names_stay_below_the_store(tmp_path: Path, make_record: Maker) -> None:
    record = make_record(method="..", model=ModelUsed("hub/vit", 1, "none", None), profile="../../x")
    path = Store(tmp_path).place(record)
    assert path.resolve().is_relative_to(tmp_path / "runs" / "voc" / "overlapped-15-1")
    assert len(path.relative_to(tmp_path).parts) == 6


def test_a_record_is_written_once(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    first, second = make_record(iterations=10), make_record(iterations=11)
    path = store.write(first)
    assert store.write(second) == path
    assert store.records() == [first]


def test_a_file_of_another_key_is_kept_and_named(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    path = store.write(make_record())
    with pytest.raises(StoreError, match="another record") as caught:
        store.write(make_record(key="other"))
    assert str(path) in str(caught.value)
    assert store.records() == [make_record()]


def test_find_goes_by_key_and_run(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    assert store.find("key0", "0123456789abcdef") is None
    for step in range(3):
        store.write(make_record(step=step))
    store.write(make_record(run_key="ffff456789", method="plop"))
    found = store.find("key1", "0123456789abcdef")
    assert found is not None
    assert found.step == 1
    assert store.find("key9", "0123456789abcdef") is None
    assert store.find("key1", "ffff456789") is None
    assert store.find("key0", "0123456789-same-start") is None
    store.write(make_record(run_key="eeee456789", method="mbs", origin="submitted"))
    with pytest.raises(StoreError, match="is submitted: it was not measured here"):
        store.find("key0", "eeee456789")
    shared = store.find("key0", "ffff456789")
    assert shared is not None
    assert shared.method.name == "plop"


def test_records_come_in_order_of_steps(tmp_path: Path, make_record: Maker) -> None:
    store = Store(str(tmp_path))
    for step in (10, 2, 0):
        store.write(make_record("overlapped-5-1", step=step))
    assert [record.step for record in store.records()] == [0, 2, 10]


def test_unreadable_files_are_named(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    path = store.write(make_record())
    (path.parent / ".step-1.json.abc.tmp").write_text("half a reco")
    assert len(store.records()) == 1
    path.write_text(path.read_text()[:-100])
    for ask in (store.records, store.steps, lambda: store.find("key0", "0123456789abcdef")):
        with pytest.raises(StoreError) as caught:
            ask()
        assert str(path) in str(caught.value)
    with pytest.raises(StoreError, match="checksum does not match"):
        store.write(make_record())
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="not valid JSON"):
        store.records()


def test_the_frame_has_one_row_a_record(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    empty = store.steps()
    assert len(empty) == 0
    records = [make_record(step=step) for step in (0, 5)]
    for record in records:
        store.write(record)
    frame = store.steps()
    assert list(frame.columns) == list(empty.columns)
    assert list(frame["record"]) == records
    assert list(frame["method"]) == ["mib", "mib"]
    assert list(frame["finished"]) == [False, True]
    row = frame.iloc[1]
    assert (row["model"], row["data_kind"], row["step"], row["key"]) == ("segmenter-tiny", "mini", 5, "key5")
    assert row["train_seconds"] == 10.0
    assert not frame.isna().any().any()


def test_a_store_on_a_file_is_an_error(tmp_path: Path, make_record: Maker) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(StoreError, match="in the way"):
        Store(tmp_path / "results").write(make_record())


def test_records_are_frozen(make_record: Maker) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_record().seed = 1  # type: ignore[misc]


def test_many_may_prepare_one_store_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    with ThreadPoolExecutor(8) as pool:
        for outcome in [pool.submit(store.prepare) for _ in range(400)]:
            outcome.result()
    assert list((tmp_path / "out" / "runs").iterdir()) == []
