"""Cells: which runs are seeds of each other, what is published beside them, and what is never put together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cispbench.reports.tables.cells import by_group, cells, latest, spread
from cispbench.reports.tables.published import closest, published, same_backbone
from cispbench.reports.tables.render import render_store
from cispbench.reports.tables.runs import NUMBERS, Selection
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.continual import METRICS, continual_metrics
from cispbench.results.ledger import reported_rows
from cispbench.results.protocols import protocol_names
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed, ModelUsed
from cispbench.results.scores import score
from cispbench.results.store import Store
from cispbench.splits.errors import StoreError, UsageError
from cispbench.splits.settings import parse_setting

Maker = Callable[..., StepRecord]
FULL = DataUsed("full", "f0", 10582, 1449, "cd" * 32)
RESNET = ModelUsed("deeplabv3-resnet101", 1, "resnet101", "aa" * 32)
SETTING = parse_setting("overlapped-10-5")


def matrix(*right: int) -> tuple[tuple[int, ...], ...]:
    """Counts of VOC: so many of a class's 100 pixels right, by group of ten, five and five; misses are background."""
    rows = [[0] * 21 for _ in range(21)]
    rows[0][0] = 1000
    for index in range(1, 21):
        group = 0 if index <= 10 else 1 if index <= 15 else 2
        number = right[group] if group < len(right) else 0
        rows[index][index], rows[index][0] = number, 100 - number
    return tuple(map(tuple, rows))


RUN = [matrix(90), matrix(80, 60), matrix(70, 65, 30)]


def write_run(store: Store, make_record: Maker, run_key: str, matrices: Any = RUN, **changes: Any) -> None:
    """Write all steps of a run on 10-5."""
    fields = {"data": FULL} | changes
    for step, confusion in enumerate(matrices):
        store.write(make_record("overlapped-10-5", step=step, confusion=confusion, run_key=run_key, **fields))


def write_joint(store: Store, make_record: Maker, run_key: str, right: int = 80, **changes: Any) -> None:
    fields = {"method": "joint", "joint": True, "steps": 1, "step": 0, "classes": tuple(range(1, 21)), "data": FULL}
    confusion = matrix(right, right, right)
    store.write(make_record("overlapped-10-5", confusion=confusion, run_key=run_key, **(fields | changes)))


@pytest.mark.parametrize("protocol", protocol_names())
def test_a_run_is_scored_after_every_step(tmp_path: Path, make_record: Maker, protocol: str) -> None:
    store = Store(tmp_path)
    write_run(store, make_record, "a" * 16)
    (run,) = load_runs(store, protocol)
    for step, entry in enumerate(run.steps):
        expected = score(RUN[step], SETTING, step, protocol)
        assert (entry.step, entry.key, entry.cost.train_seconds) == (step, f"key{step}", 10.0)
        assert entry.scores.per_class == pytest.approx(expected.per_class, nan_ok=True)
    assert run.scores == run.steps[-1].scores
    assert run.complete and not run.imported
    assert run.path == store.place(make_record("overlapped-10-5", step=2, run_key="a" * 16))
    expected_metrics = continual_metrics([score(m, SETTING, step, protocol) for step, m in enumerate(RUN)], SETTING)
    for name in METRICS:
        assert run.number(name) == pytest.approx(getattr(expected_metrics, name), nan_ok=True)


def test_seeds_make_a_cell(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    for seed, right in ((2, 60), (0, 40), (1, 50)):
        write_run(store, make_record, f"{seed}" * 16, [matrix(90), matrix(80, 60), matrix(right, 50, 50)], seed=seed)
    (cell,) = cells(load_runs(store, "mib20"))
    assert [run.facts.seed for run in cell.runs] == [0, 1, 2]
    assert cell.numbers["old"].values == pytest.approx((40, 50, 60))
    assert (cell.numbers["old"].mean, cell.numbers["old"].std) == pytest.approx((50, 10))
    assert cell.numbers["new"].std == pytest.approx(0)
    assert set(cell.numbers) == set(NUMBERS)
    assert cell.setting == "overlapped-10-5"
    assert cell.key[:8] == ("voc", "overlapped", "10-5", "a", "full", "paper", "mib", "segmenter-tiny")
    assert cell.key[8:] == ("", "measured", False, (1,))


def test_spreads() -> None:
    assert spread([1.0, 2.0, 4.0])[:2] == pytest.approx((7 / 3, statistics.stdev([1, 2, 4])))
    assert spread([5.0]).mean == 5 and math.isnan(spread([5.0]).std)
    for values in ([], [1.0, math.nan]):
        assert math.isnan(spread(values).mean) and math.isnan(spread(values).std)


OTHERS: list[dict[str, Any]] = [
    {"data": replace(FULL, kind="mini")}, {"profile": "mini"}, {"method": "plop"}, {"model": RESNET},
    {"recipe": {"lr": 2}}, {"origin": "submitted"}, {"environment": {"imported": {"code": "mib"}}},
    {"data": replace(FULL, fingerprint="f9")},
]  # fmt: skip


@pytest.mark.parametrize("changes", OTHERS, ids=lambda changes: next(iter(changes)))
def test_runs_that_differ_by_more_than_seeds_are_apart(tmp_path: Path, make_record: Maker, changes: Any) -> None:
    store = Store(tmp_path)
    write_run(store, make_record, "a" * 16)
    later = {"created": "2031-01-01T00:00:00+00:00"}
    write_run(store, make_record, "b" * 16, **(later | changes))  # the same seed: superseded if taken for the same
    write_run(store, make_record, "c" * 16, **(later | changes | {"seed": 1}))
    first, second = sorted(cells(load_runs(store)), key=lambda cell: len(cell.runs))
    assert [run.facts.run_key[0] for run in first.runs] == ["a"]
    assert [run.facts.run_key[0] for run in second.runs] == ["b", "c"]
    assert first.key != second.key
    assert (first.superseded, second.superseded) == (0, 0)
    groups = {cell.group for cell in (first, second)}
    assert len(groups) == len(by_group([first, second])) == (2 if changes in OTHERS[:2] else 1)


def test_the_newest_run_of_a_seed_counts(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    write_run(store, make_record, "a" * 16, created="2025-03-01T00:00:00+00:00")
    write_run(store, make_record, "b" * 16, created="2025-01-01T00:00:00+00:00")
    runs = load_runs(store)
    assert len(runs) == 2
    (cell,) = cells(runs)
    assert [run.facts.run_key[0] for run in cell.runs] == ["a"]
    assert cell.superseded == 1
    assert latest(runs) == list(cell.runs)


def test_intransigence_needs_the_joint_run_of_the_same_setting_model_and_data(
    tmp_path: Path, make_record: Maker
) -> None:
    store = Store(tmp_path)
    write_run(store, make_record, "a" * 16)
    for number, others in enumerate(({"model": RESNET}, {"data": replace(FULL, fingerprint="f9")}, {"profile": "x"})):
        write_joint(store, make_record, f"{number}" * 16, **others)
    assert math.isnan(runs_of(store, "mib")[0].continual.intransigence)
    write_joint(store, make_record, "d" * 16, right=80)
    write_joint(store, make_record, "e" * 16, right=90, seed=1)
    (run,) = runs_of(store, "mib")
    assert run.continual.intransigence == pytest.approx((80 + 90) / 2 - 30)
    (alone,) = load_runs(store, "strict", Selection(method="mib"))
    assert alone.continual.intransigence == run.continual.intransigence  # the joint run need not be selected
    joint = next(run for run in load_runs(store) if run.facts.run_key[0] == "d")
    assert math.isnan(joint.continual.average_over_steps) and math.isnan(joint.continual.intransigence)
    assert joint.scores.old == pytest.approx(80) and joint.continual.harmonic == pytest.approx(80)
    write_joint(store, make_record, "f" * 16, right=10, recipe={"lr": 3})
    assert math.isnan(runs_of(store, "mib")[0].continual.intransigence)  # which of the two is not known


def test_a_strangers_joint_run_is_no_reference_and_no_rival(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    write_run(store, make_record, "a" * 16)
    write_joint(store, make_record, "b" * 16, right=100, origin="submitted")
    write_run(store, make_record, "c" * 16, matrices=RUN, method="evil", origin="submitted")
    assert math.isnan(runs_of(store, "mib")[0].continual.intransigence)
    write_joint(store, make_record, "d" * 16, right=80)
    assert runs_of(store, "mib")[0].continual.intransigence == pytest.approx(80 - 30)
    assert {cell.key.method: cell.ranked for cell in cells(load_runs(store))} == {
        "mib": True, "evil": False, "joint": False,
    }  # fmt: skip
    text = render_store(store, "markdown")
    assert "shown, not ranked" in text and "**" not in next(line for line in text.splitlines() if "evil" in line)


def runs_of(store: Store, method: str) -> list[Any]:
    return [run for run in load_runs(store) if run.facts.method.name == method]


def test_a_run_without_all_its_steps_has_no_continual_metrics(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    for step in (0, 2):
        store.write(make_record("overlapped-10-5", step=step, confusion=RUN[step]))
    (run,) = load_runs(store)
    assert not run.complete
    assert [entry.step for entry in run.steps] == [0, 2]
    assert all(math.isnan(run.number(name)) for name in METRICS if name != "harmonic")
    assert run.number("harmonic") == pytest.approx(2 * 70 * 47.5 / 117.5)


def test_what_is_published_beside_a_cell(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    store.write(make_record("overlapped-15-1", step=5, data=FULL, model=RESNET, confusion=RUN[2]))
    (cell,) = cells(load_runs(store))
    rows = published(cell)
    assert len(rows) == len(reported_rows("overlapped-15-1", "mib")) > 5
    assert rows == sorted(rows, key=lambda entry: not entry.same_backbone)
    assert {entry.same_backbone for entry in rows} == {True, False}
    for entry in rows:
        assert entry.same_backbone == (entry.row["backbone"] == "ResNet-101 DeepLabV3")
        for name, difference in entry.differences.items():
            printed = entry.row[name]
            expected = None if printed is None else cell.numbers[name].mean - printed
            assert difference == (None if expected is None else pytest.approx(expected))
    near = closest(cell)
    assert near and {entry.row["kind"] for entry in near} == {rows[0].row["kind"]}
    assert all(entry.same_backbone for entry in near)


@pytest.mark.parametrize("changes", [{"profile": "mini"}, {"data": replace(FULL, kind="mini")}])
def test_other_data_and_profiles_have_nothing_published_beside(
    tmp_path: Path, make_record: Maker, changes: Any
) -> None:
    store = Store(tmp_path)
    write_run(store, make_record, "a" * 16, model=RESNET, **changes)
    (cell,) = cells(load_runs(store))
    assert not cell.group.comparable
    assert published(cell) == closest(cell) == []


def test_backbones() -> None:
    assert same_backbone("deeplabv3-resnet101", "ResNet-101 DeepLabV3")
    assert not same_backbone("deeplabv3-resnet50", "ResNet-101 DeepLabV3")
    assert not same_backbone("deeplabv3-resnet101", "transformer")


def test_errors(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    assert load_runs(store) == [] == cells([])
    write_run(store, make_record, "a" * 16)
    with pytest.raises(UsageError, match="'strict'"):
        load_runs(store, "strct")
    with pytest.raises(UsageError, match="'mib'"):
        load_runs(store, "strict", Selection(method="mibb"))
    next(tmp_path.glob("runs/**/step-0.json")).write_text("{")
    with pytest.raises(StoreError, match=r"step-0\.json"):
        load_runs(store)
