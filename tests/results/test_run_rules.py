"""What cannot have been measured is refused wherever a store is read, and what can be is not."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cispbench.results.checked_json import add_checksum
from cispbench.results.record import StepRecord, confusion_rows
from cispbench.results.record_fields import DataUsed
from cispbench.results.scan import scan_finished, scan_record, scan_steps
from cispbench.results.store import Store, read_record, read_run
from cispbench.splits.datasets import DATASETS, dataset
from cispbench.splits.errors import StoreError
from cispbench.splits.settings import parse_setting

Maker = Callable[..., StepRecord]
FULL = DataUsed("full", "f0", 0, 1449, "")  # the maker of records fills in the published lists
MINI = DataUsed("mini", "f1", 40, 20, "ab" * 32)


def put(store: Store, make_record: Maker, setting: str = "overlapped-15-5", **changes: Any) -> list[Path]:
    """Write all steps of a run, with as many pixels of each class in every step, and return their files."""
    steps = range(1 if changes.get("joint") else len(parse_setting(setting).steps))
    return [store.write(make_record(setting, step, **changes)) for step in steps]


def forge(path: Path, **changes: Any) -> Path:
    """Change a record as by hand, with the right checksum and at the right place; return its file."""
    content = read_record(path).content()
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = content
        for key in outer:
            place = place[key]
        place[last] = value
    record = StepRecord.from_content(content, "forged")
    path.unlink()
    path = Store(path.parents[5]).place(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(record.to_json())
    return path


def readers(path: Path) -> list[Callable[[], Any]]:
    store = Store(path.parents[5])
    return [
        lambda: read_run(path.parent), store.records, store.steps,
        lambda: [scan_steps(last) for last in scan_finished(store.last_files())],
    ]  # fmt: skip


def all_right(record: StepRecord) -> list[list[int]]:
    known = parse_setting(record.setting).num_classes(record.step)
    return np.diag([100 if index < known else 0 for index in range(21)]).tolist()


FORGED: list[tuple[dict[str, Any], str]] = [
    ({"data__kind": "full"}, "does not tell resize_short and crop"),
    ({"data__kind": "full", "recipe__evaluation": {"resize_short": 512, "crop": 512}}, "more than 10000 pixels each"),
    ({"data__kind": "full", "recipe__evaluation": {"resize_short": None, "crop": None}}, "the full data have 1449"),
    ({"data__kind": "synthetic"}, "the profile paper never meets"),
    ({"steps": 3}, "steps is 3, and the setting says 2"),
    ({"classes": [1, 2]}, "classes is (1, 2), and the setting says"),
    ({"learning_order": [0, *range(20, 0, -1)]}, "learning_order is"),
    ({"scenario": "disjoint"}, "scenario is 'disjoint'"),
    ({"data__val_images": 0}, "0 test images with"),
    ({"confusion": [[0] * 21] * 21}, "with 0 pixels were counted"),
]


@pytest.mark.parametrize(("changes", "words"), FORGED)
def test_a_record_that_cannot_have_been_measured_is_refused(
    tmp_path: Path, make_record: Maker, changes: dict[str, Any], words: str
) -> None:
    path = forge(put(Store(tmp_path), make_record, data=MINI)[1], **changes)
    for read in [*readers(path), lambda: read_record(path), lambda: scan_record(path)]:
        with pytest.raises(StoreError) as caught:
            read()
        assert str(path) in str(caught.value) and words in str(caught.value)
    with pytest.raises(StoreError):
        Store(tmp_path / "other").write(StepRecord.from_json(path.read_bytes(), "x"))


def test_classes_not_learnt_yet_are_not_predicted(tmp_path: Path, make_record: Maker) -> None:
    path = put(Store(tmp_path), make_record)[0]
    counts = read_record(path).matrix()
    counts[3, 3] -= 1
    counts[3, 17] += 1
    forge(path, confusion=counts.tolist())
    for read in (lambda: read_record(path), lambda: scan_record(path)):
        with pytest.raises(StoreError, match=r"confusion\[3\]\[17\] counts predictions of a class that is not learnt"):
            read()


def test_full_data_have_the_pixels_of_their_masks(tmp_path: Path, make_record: Maker) -> None:
    view = {"evaluation": {"resize_short": 512, "crop": 512}}
    record = make_record(
        "overlapped-15-5", 1, data=FULL, recipe=view, confusion=confusion_rows(np.eye(21, dtype=int) * 10**6)
    )
    with pytest.raises(StoreError, match="lack or exceed the data's pixels"):
        Store(tmp_path).write(record)
    with pytest.raises(StoreError, match="not those of the published list"):
        Store(tmp_path).write(replace(record, data=replace(record.data, train_images=7)))


RUN_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"previous_key": "other"}, "step 1: previous_key is 'other', not the key of the step before"),
    ({"key": "key0"}, "two of its steps have the same key"),
    ({"recipe__optim": {"lr": 1}}, "recipe is not the same in every step"),
    ({"data__fingerprint": "other"}, "data.fingerprint is not the same"),
    ({"origin": "submitted"}, "origin is not the same"),
    ({"run_key": "0123456789-alike"}, "is of the run|run_key is not the same"),
]


def test_the_base_of_a_run_may_be_trained_by_other_code(tmp_path: Path, make_record: Maker) -> None:
    path = forge(put(Store(tmp_path), make_record)[0], method__code="ab" * 32)
    forge(path.with_name("step-1.json"), method__code="cd" * 32)
    for read in readers(path):
        read()


@pytest.mark.parametrize(("changes", "words"), RUN_FAULTS)
def test_steps_that_do_not_fit_together_are_refused(
    tmp_path: Path, make_record: Maker, changes: dict[str, Any], words: str
) -> None:
    path = forge(put(Store(tmp_path), make_record)[1], **changes)
    for read in readers(path):
        with pytest.raises(StoreError, match=words) as caught:
            read()
        assert str(path.parent) in str(caught.value)


def test_the_ground_truth_is_the_same_at_every_step(tmp_path: Path, make_record: Maker) -> None:
    path = put(Store(tmp_path), make_record)[1]
    forge(path, confusion=all_right(read_record(path)))
    for read in readers(path):
        with pytest.raises(StoreError, match="step 1: row 0 counts 100 pixels, and 110 at the first step"):
            read()


def test_what_can_have_been_measured_is_read(
    tmp_path: Path, make_record: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys = replace(dataset("voc"), name="toys", title="Toys", published=None)
    monkeypatch.setitem(DATASETS._loaded, ("toys", tuple(sys.path)), toys)
    tiny = {"evaluation": {"resize_short": 48, "crop": 48}}
    stores = {name: Store(tmp_path / name) for name in ("own", "full", "plug-in", "joint", "profile", "small")}
    put(stores["own"], make_record)
    put(stores["full"], make_record, data=FULL)
    put(stores["plug-in"], make_record, "toys:overlapped-15-1", data=replace(FULL, val_images=3), recipe={})
    joint = {"joint": True, "steps": 1, "classes": tuple(range(1, 21))}
    put(stores["joint"], make_record, **joint)
    put(stores["profile"], make_record, profile="theirs", data=replace(MINI, kind="synthetic"))
    counts = confusion_rows(np.eye(21, dtype=np.int64) * 48 * 48 * 60)
    put(stores["small"], make_record, data=FULL, recipe=tiny, confusion=counts)
    for name in ("imported", "scored"):
        stores[name] = Store(tmp_path / name)
        origin = "predictions" if name == "scored" else "measured"
        for step in (2, 3, 5) if name == "scored" else (3, 4, 5):
            before = f"key{step - 1}" if name == "imported" and step > 3 else None
            stores[name].write(make_record(step=step, previous_key=before, origin=origin))
    for store in stores.values():
        runs = [scan_steps(last) for last in scan_finished(store.last_files())]
        assert len(runs) == 1
        assert [entry.facts.key for entry in runs[0]] == [record.key for record in store.records()]


def test_a_record_at_anothers_place_is_refused(tmp_path: Path, make_record: Maker) -> None:
    first, second = put(Store(tmp_path), make_record)
    copied = first.parents[1].with_name("plop")
    shutil.copytree(first.parents[1], copied)
    for read in readers(first)[1:]:
        with pytest.raises(StoreError, match=r"plop.*holds the record of voc/overlapped-15-5/mib/"):
            read()
    shutil.rmtree(copied)
    shutil.copy(first, second)
    for read in readers(first):
        with pytest.raises(StoreError, match=r"step-1\.json holds the record of .*step-0\.json"):
            read()


def test_two_runs_whose_keys_begin_alike_do_not_mix(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    store.write(make_record("overlapped-15-5", 0))
    with pytest.raises(StoreError, match=r"step-0\.json holds another record"):
        store.write(make_record("overlapped-15-5", 1, run_key="0123456789-alike"))
    assert len(store.records()) == 1
    assert store.find("key1", "0123456789-alike") is None


@pytest.mark.timeout(20)
def test_links_and_pipes_are_refused(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path / "out")
    path = put(store, make_record)[1]
    outside = tmp_path / "outside.json"
    path.rename(outside)
    path.symlink_to(outside)
    for read in [*readers(path), lambda: store.write(make_record("overlapped-15-5", 1))]:
        with pytest.raises(StoreError, match=r"step-1\.json is a symbolic link"):
            read()
    path.unlink()
    os.mkfifo(path)
    for read in [*readers(path), lambda: store.write(make_record("overlapped-15-5", 1))]:
        with pytest.raises(StoreError, match=r"step-1\.json: it is a .*, not a plain file"):
            read()
    path.unlink()
    path.mkdir()
    for read in readers(path):
        with pytest.raises(StoreError, match=r"step-1\.json: it is a .*, not a plain file"):
            read()
    path.rmdir()
    (tmp_path / "elsewhere").mkdir()
    path.parents[1].with_name("linked").symlink_to(tmp_path / "elsewhere")
    for read in readers(path)[1:]:
        with pytest.raises(StoreError, match="linked is a symbolic link"):
            read()


@pytest.mark.parametrize("depth", range(5))
def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, make_record: Maker, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    store, real = Store(tmp_path), os.scandir
    closed = put(store, make_record)[0].parents[depth]

    def scan(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    for read in (
        store.records,
        store.last_files,
        lambda: store.find("x", "0123456789abcdef"),
        lambda: store.find_run("0"),
    ):
        with pytest.raises(StoreError, match="cannot read the folder") as caught:
            read()
        assert str(closed) in str(caught.value)


def test_a_store_without_records_is_empty_and_one_behind_a_broken_link_is_an_error(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").records() == Store(tmp_path / "none").last_files() == []
    (tmp_path / "runs").symlink_to(tmp_path / "not mounted")
    with pytest.raises(StoreError, match="cannot read the folder"):
        Store(tmp_path).records()


def test_a_data_set_that_is_not_installed_is_named_with_the_file(tmp_path: Path, make_record: Maker) -> None:
    path = put(Store(tmp_path), make_record)[0]
    content = {**read_record(path).content(), "dataset": "moon", "setting": "moon:overlapped-15-5"}
    record = StepRecord.from_content(content, "x")
    shutil.rmtree(tmp_path / "runs")
    path = Store(tmp_path).place(record)
    path.parent.mkdir(parents=True)
    path.write_bytes(record.to_json())
    for read in [*readers(path), lambda: scan_record(path)]:
        with pytest.raises(StoreError, match=r"step-0\.json: unknown data set 'moon'.*Install the package"):
            read()


def test_a_key_twice_and_half_a_character_are_refused_with_a_right_checksum(tmp_path: Path, make_record: Maker) -> None:
    path = put(Store(tmp_path), make_record)[1]
    text = "{\n" + path.read_text().split("\n", 2)[2]
    assert json.loads(text)
    for old, new in (
        ('"seed": 0', '"seed": 1,\n "seed": 0'), ('"dirty": null', '"dirty": true, "dirty": null'),
        ('"seed": 0', '"seed" : 1,\n "seed": 0'),
        ('"median"', '"\\ud800"'), ('"python": "3.11"', '"python": "\\udfff"'),
    ):  # fmt: skip
        assert text.count(old) == 1, old
        path.write_bytes(add_checksum(text.replace(old, new)))
        for read in readers(path):
            with pytest.raises(StoreError, match=r"step-1\.json is not valid JSON"):
                read()
