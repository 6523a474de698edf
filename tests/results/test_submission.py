"""Submissions: what must agree before a stranger's numbers enter the store, and that all of a run enters or none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cispbench.results import store as store_module
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed, Execution, ModelUsed, TrainedFor
from cispbench.results.store import Store
from cispbench.results.submission import SCHEMA, accept, pack, write_submission
from cispbench.results.submission_checks import problems, scored_from_files
from cispbench.results.submission_text import content_digest
from cispbench.splits.errors import StoreError, UsageError
from cispbench.splits.selection import golden_steps
from cispbench.splits.settings import parse_setting
from cispbench.splits.strict_yaml import load_yaml

Maker = Callable[..., StepRecord]
RUN = "ab" * 32
PIXELS = load_yaml(Path(store_module.__file__).parent / "known_pixels.yaml")


def key(step: int, run: str = RUN) -> str:
    return content_digest([step, run])


def matrix(setting: str, step: int, truth: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    """Half of every class not learnt and a tenth of each known one is taken for background, the rest is right."""
    known = parse_setting(setting).num_classes(step)
    rows = []
    for index, pixels in enumerate(truth):
        right = pixels - pixels // 10 if index < known else 0
        row = [0] * parse_setting(setting).num_foreground + [0]
        row[index if index < known else 0] += right
        row[0] += pixels - right
        rows.append(tuple(row))
    return tuple(rows)


@pytest.fixture
def run(make_record: Maker) -> Callable[..., list[StepRecord]]:
    """What makes a run's sound records: on mini data, of which nothing is known, unless ``data`` says otherwise."""

    def make(setting: str = "overlapped-15-5", truth: Iterable[int] | None = None, **changes: Any) -> list[StepRecord]:
        plan = parse_setting(setting)
        pixels = list(truth or [1000 + 10 * index for index in range(plan.num_foreground + 1)])
        fields = {
            "run_key": RUN, "profile": "mini", "data": DataUsed("mini", "cd" * 32, 40, 20, "ef" * 32),
            "recipe": {"evaluation": {"resize_short": 256, "crop": None}}, "trained_for": None,
        }  # fmt: skip
        return [
            make_record(setting, step, key=key(step), previous_key=key(step - 1) if step else None,
                        confusion=matrix(setting, step, pixels), **{**fields, **changes})
            for step in range(len(plan.steps))
        ]  # fmt: skip

    return make


def full_run(run: Callable[..., list[StepRecord]], setting: str = "overlapped-15-1-b") -> list[StepRecord]:
    """A run on the full data of VOC, as tested by the papers' view."""
    plan, known = parse_setting(setting), PIXELS["voc"][0]
    lists = golden_steps(plan) or [(9, "12" * 32)] * len(plan.steps)
    view = {"evaluation": {"resize_short": 512, "crop": 512}}
    records = run(setting, [known["pixels"][number] for number in plan.learning_order], profile="paper", recipe=view)
    return [
        replace(record, data=DataUsed("full", "cd" * 32, images, 1449, sha256))
        for record, (images, sha256) in zip(records, lists, strict=True)
    ]


def submitted(path: Path, records: list[StepRecord], **changes: Any) -> Path:
    """Write a submission without the checks of ``pack``."""
    packed = [record.content() for record in records]
    content = {
        "format": "cispbench-submission", "schema": SCHEMA, "packed_by": "0.1.0", "run_key": records[0].run_key,
        "records": [{"sha256": content_digest(record), "record": record} for record in packed],
    }  # fmt: skip
    path.write_text(json.dumps(content | changes))
    return path


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_packed_and_accepted_is_the_same_but_for_its_origin(tmp_path: Path, run: Any) -> None:
    records, store = run("overlapped-15-1"), Store(tmp_path / "mine")
    for record in reversed(records):
        store.write(record)
    data = pack(store.find_run(RUN[:6]), "0.1.0")
    assert data == pack(records, "0.1.0")
    path = tmp_path / "run.json"
    write_submission(path, data)
    write_submission(path, data)
    theirs = Store(tmp_path / "theirs")
    taken = accept(path, theirs)
    assert (len(taken.written), len(taken.unchanged)) == (6, 0)
    assert theirs.records() == [replace(record, origin="submitted") for record in records]
    before = files(theirs.path)
    again = accept(path, theirs)
    assert (len(again.written), len(again.unchanged)) == (0, 6)
    assert files(theirs.path) == before
    assert accept(path, store).written == ()
    assert {record.origin for record in store.records()} == {"measured"}
    resent = tmp_path / "resent.json"
    resent.write_bytes(pack(theirs.records(), "0.1.0"))
    assert accept(resent, theirs).written == ()


def test_what_is_there_is_never_overwritten(tmp_path: Path, run: Any) -> None:
    path = tmp_path / "run.json"
    path.write_text("mine")
    with pytest.raises(StoreError, match="holds something else"):
        write_submission(path, b"other")
    assert path.read_text() == "mine"
    with pytest.raises(UsageError, match="no run in"):
        Store(tmp_path).find_run(RUN[:6])
    store = Store(tmp_path / "store")
    for number in (1, 2):
        for record in run(run_key=f"{number}a" * 32, seed=number):
            store.write(record)
    with pytest.raises(UsageError, match="no run"):
        store.find_run("")
    assert len(store.find_run("1a")) == 2


def test_another_result_of_the_same_run_is_refused_whole(tmp_path: Path, run: Any) -> None:
    store, records = Store(tmp_path / "store"), run()
    store.write(records[1])
    before = files(store.path)
    changed = [records[0], replace(records[1], iterations=11)]
    with pytest.raises(StoreError, match=r"step-1\.json holds another record of step 1"):
        accept(submitted(tmp_path / "changed.json", changed), store)
    named = [replace(record, method=replace(record.method, name="other")) for record in records]
    with pytest.raises(StoreError, match="has the run's key ababababab under another name"):
        accept(submitted(tmp_path / "named.json", named), store)
    assert files(store.path) == before
    assert len(accept(submitted(tmp_path / "right.json", records), store).written) == 1


def test_a_disk_that_gives_up_halfway_leaves_nothing(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = store_module.write_atomic, []

    def fail_at_the_third(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise StoreError("the disk is full")
        write(path, data)

    monkeypatch.setattr(store_module, "write_atomic", fail_at_the_third)
    path = submitted(tmp_path / "run.json", run("overlapped-15-1"))
    with pytest.raises(StoreError, match="full"):
        accept(path, Store(tmp_path / "store"))
    assert files(tmp_path / "store") == {}
    calls.extend([path] * 9)
    assert len(accept(path, Store(tmp_path / "store")).written) == 6


def test_runs_of_every_kind_are_sound(run: Any) -> None:
    drawn = PIXELS["voc"][2]["pixels"]
    view = {"evaluation": {"resize_short": None, "crop": None, "batch": 32}}
    scenes = DataUsed("synthetic", "cd" * 32, 40, 256, "ef" * 32)
    assert problems(run()) == []
    assert problems(full_run(run)) == []
    assert problems(full_run(run, "disjoint-19-1")) == []
    assert problems(run(truth=drawn, profile="quick", data=scenes, recipe=view)) == []
    imported = [
        replace(record, previous_key=None) if record.step == 2 else record for record in run("overlapped-15-1")[2:]
    ]
    assert problems(imported) == []
    last = run("overlapped-15-1", truth=range(100, 121))[-1]
    joint = replace(last, joint=True, step=0, steps=1, previous_key=None, classes=last.learning_order[1:])
    assert problems([joint]) == []
    scored = [replace(record, previous_key=None, origin="predictions") for record in run("overlapped-15-1")]
    assert problems(scored) == problems(scored[-1:]) == problems(scored[2:3] + scored[5:]) == []
    assert all(map(scored_from_files, scored))


def edited(records: list[StepRecord], place: int, **changes: Any) -> list[StepRecord]:
    return [replace(record, **changes) if number == place else record for number, record in enumerate(records)]


def moved(record: StepRecord, row: int, column: int, other: int, pixels: int = 5) -> Any:
    """Move pixels of row and column to the column ``other``."""
    counts = np.array(record.confusion)
    counts[row, column] -= pixels
    counts[row, other] += pixels
    return tuple(map(tuple, counts.tolist()))


def thinned(record: StepRecord) -> StepRecord:
    """The same shares from a hundredth of the pixels, under a view that is not known."""
    counts = (np.array(record.confusion) // 100).tolist()
    view = {"evaluation": {"resize_short": 500, "crop": None}}
    return replace(record, confusion=tuple(map(tuple, counts)), recipe=view)


FULL_FAULTS: list[tuple[Callable[[list[StepRecord]], list[StepRecord]], str]] = [
    (lambda r: edited(r, 0, confusion=moved(r[0], 3, 3, 18)), "confusion[3][18] counts predictions of a class"),
    (lambda r: [replace(e, data=replace(e.data, val_images=1400)) for e in r], "the full data have 1449"),
    (lambda r: edited(r, 1, data=replace(r[1].data, train_images=77)), "not those of the published list"),
    (lambda r: edited(r, 1, data=replace(r[1].data, list_sha256="00" * 32)), "not those of the published list"),
    (lambda r: [replace(e, confusion=tuple(tuple(2 * n for n in row) for row in e.confusion)) for e in r], "fewer"),
    (lambda r: [replace(e, confusion=e.confusion[:-2] + e.confusion[:-3:-1]) for e in r], "lack or exceed"),
    (lambda r: [replace(e, recipe={"evaluation": {"resize_short": None, "crop": None}}) for e in r], "lack or exceed"),
    (lambda r: [replace(e, recipe={}) for e in r], "does not tell resize_short and crop"),
    (lambda r: [replace(e, recipe={"evaluation": {"resize_short": 512, "crop": 512.0}}) for e in r], "does not tell"),
    (lambda r: [thinned(e) for e in r], "more than 10000 pixels each"),
    (lambda r: [replace(e, data=replace(e.data, kind="synthetic")) for e in r], "the profile paper never meets"),
    (lambda r: [replace(e, profile="../x") for e in r], "profile is '../x'"),
    (lambda r: [replace(e, profile="quick") for e in r], "the profile quick never meets"),
    (lambda r: edited(r, 1, seed=4), "seed is not the same in every step"),
    (lambda r: edited(r, 1, recipe={}), "recipe is not the same"),
    (lambda r: edited(r, 1, model=ModelUsed("other", 1, "none", None)), "model.name is not the same"),
    (lambda r: edited(r, 1, run_key="00" * 32), "run_key is not the same"),
    (lambda r: edited(r, 1, origin="predictions"), "scored from files is not the same"),
    (lambda r: r[:-1], "it is not finished"),
    (lambda r: [r[0], *r[2:]], "not one after the other"),
    (lambda r: [r[0], *r], "not one after the other"),
    (lambda r: edited(r, 1, previous_key=key(5)), "not the key of the step before"),
    (lambda r: edited(r, 1, previous_key=None), "not the key of the step before"),
    (lambda r: edited(r, 1, key="key1"), "not a SHA-256 sum"),
    (lambda r: edited(r, 0, learning_order=tuple(range(21))), "learning_order is"),
    (lambda r: edited(r, 0, setting="overlapped-15-1"), "the setting says"),
    (lambda r: edited(r, 0, setting="overlapped-16-3"), "setting: "),
    (lambda r: edited(r, 0, quirks=("<b>",)), "quirks is '<b>'"),
    (lambda r: edited(r, 0, created="2999-01-01T00:00:00+00:00"), "yet to come"),
    (lambda r: edited(r, 0, trained_for=TrainedFor("../m", "overlapped-15-5", 0, RUN)), "trained_for.method"),
]


@pytest.mark.parametrize("number", range(len(FULL_FAULTS)))
def test_what_cannot_be_is_told(run: Any, tmp_path: Path, number: int) -> None:
    break_it, words = FULL_FAULTS[number]
    records = break_it(full_run(run))
    assert any(words in text for text in problems(records)), problems(records)
    with pytest.raises(StoreError, match="cannot be shared"):
        pack(records, "0.1.0")
    with pytest.raises(StoreError, match="refused"):
        accept(submitted(tmp_path / "x.json", records), Store(tmp_path / "store"))
    assert files(tmp_path / "store") == {}


def test_ground_truth_is_the_same_at_every_step(run: Any) -> None:
    records = run()
    assert problems(edited(records, 1, confusion=moved(records[1], 4, 4, 0))) == []
    other = list(records[1].confusion)
    other[4], other[5] = other[5], other[4]
    (text,) = problems(edited(records, 1, confusion=tuple(other)))
    assert text == "step 1: row 4 counts 1050 pixels, and 1040 at the first step"


def test_hardware_and_clock_may_differ_between_steps(run: Any) -> None:
    records = run()
    changes = {"environment": {"cpu": "<b>"}, "execution": Execution(4, 2), "created": "2025-02-01T00:00:00+00:00"}
    assert problems(edited(records, 1, **changes)) == []
