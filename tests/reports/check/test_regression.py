"""The regression check: baselines written and held against, published numbers under their own way of counting."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cispbench.harness.cli import main
from cispbench.reports.check.comparison import CheckOptions
from cispbench.reports.check.regression import CheckedCell, CheckResult, check_store, tolerance
from cispbench.reports.check.text import check_json, check_text
from cispbench.reports.check.update import Update, update_baselines
from cispbench.reports.tables.cells import spread
from cispbench.reports.tables.runs import Selection
from cispbench.results.baselines_files import Figure, read_baselines, write_baselines
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed, MethodUsed, ModelUsed
from cispbench.results.store import Store
from cispbench.results.submission_text import content_digest
from cispbench.splits.errors import StoreError, UsageError

Maker = Callable[..., StepRecord]
Put = Callable[..., Store]
SCENES = DataUsed("synthetic", "f1", 40, 256, "ab" * 32)
MINI = DataUsed("mini", "f2", 1028, 467, "ef" * 32)
FULL = DataUsed("full", "f0", 10582, 1449, "cd" * 32)
RESNET = ModelUsed("deeplabv3-resnet101", 1, "resnet101", "aa" * 32)
PAPER = {"profile": "paper", "data": FULL, "model": RESNET}
ANY = Selection()


def matrix(old: int, new: int) -> tuple[tuple[int, ...], ...]:
    """Counts of 15-5 or 15-1 with these IoU in percent: 1000 pixels a class, every miss is taken for background."""
    rows = [[0] * 21 for _ in range(21)]
    rows[0][0] = 100_000
    for index in range(1, 21):
        rows[index][index] = 10 * (old if index <= 15 else new)
        rows[index][0] = 1000 - rows[index][index]
    return tuple(map(tuple, rows))


@pytest.fixture
def put(make_record: Maker) -> Put:
    """What writes finished runs into a store, a run for each (old, new), seeds from 0 on."""

    def write(store: Store, *scores: tuple[int, int], setting: str = "overlapped-15-5", **changes: Any) -> Store:
        options = changes.pop("options", {})
        method = MethodUsed(changes.pop("method", "mib"), 1, options)
        fields = {"profile": "quick", "data": SCENES, "recipe": {"optim": {"lr": 0.1}}} | changes
        fields["recipe"] = {**fields["recipe"], "method": options}
        for seed, (old, new) in enumerate(scores):
            run_key = content_digest([setting, method.name, seed, repr(fields)])
            step = 1 if setting.endswith("5") else 5
            changed = {"run_key": run_key, "key": run_key, "confusion": matrix(old, new), **fields}
            store.write(replace(make_record(setting, step, seed=seed, **changed), method=method))
        return store

    return write


@pytest.fixture
def folder(tmp_path: Path, put: Put) -> Path:
    """Baselines of mib on 15-5: old 62 ± 2, new 54 ± 4 over three seeds, one point for the machine."""
    store = put(Store(tmp_path / "first"), (60, 50), (62, 54), (64, 58))
    update_baselines(store, tmp_path / "baselines", ANY, Update("first", 1.0, "cispbench sweep"))
    return tmp_path / "baselines"


@pytest.fixture
def later(tmp_path: Path) -> Store:
    return Store(tmp_path / "later")


def check(store: Store, folder: Path, selection: Selection = ANY, **rules: Any) -> CheckResult:
    return check_store(store, read_baselines(folder), selection, CheckOptions(**rules))


def only(found: CheckResult) -> CheckedCell:
    (row,) = found.cells
    return row


def statuses(row: CheckedCell) -> list[str]:
    return [entry.status for entry in row.compared]


def test_the_tolerance_is_three_standard_errors_and_the_machine() -> None:
    two, one = spread([50.0, 60.0]), spread([50.0])
    assert tolerance(Figure(50, 2.0), 4, two, 1.5, 0.5) == pytest.approx(1.5 + 3 * 2 * math.sqrt(1 / 4 + 1 / 2))
    assert tolerance(Figure(50, 0.0), 4, two, 0.0, 0.5) == 0.5
    assert tolerance(Figure(50, 0.0), 4, two, 0.75, 0.5) == 0.75
    assert tolerance(Figure(50, None), 1, two, 0.0, 0.5) == pytest.approx(3 * two.std * math.sqrt(1 + 1 / 2))
    assert tolerance(Figure(50, None), 1, one, 0.0, 0.5) == 0.5


@pytest.mark.parametrize(
    ("scores", "status", "each"),
    [
        ([(60, 50), (62, 54), (64, 58)], "ok", ["ok", "ok", "ok"]),
        ([(57, 54)] * 3, "ok", ["ok", "ok", "ok"]),  # old may be 1 + 3 * 2 * sqrt(2 / 3) = 5.9 below
        ([(56, 54)] * 3, "worse", ["worse", "ok", "ok"]),
        ([(56, 54)], "ok", ["ok", "ok", "ok"]),  # a single seed: 1 + 3 * 2 * sqrt(4 / 3) = 7.9
        ([(54, 54)], "worse", ["worse", "ok", "ok"]),
        ([(62, 40)] * 3, "worse", ["ok", "worse", "ok"]),
        ([(68, 54)] * 3, "better", ["better", "ok", "ok"]),
        ([(72, 40)] * 3, "worse", ["better", "worse", "ok"]),
    ],
)
def test_a_cell_stands_as_its_worst_score(
    put: Put, folder: Path, later: Store, scores: Any, status: str, each: list[str]
) -> None:
    row = only(check(put(later, *scores), folder))
    assert (row.status, row.against, row.note) == (status, "baseline of 3 seeds", "")
    assert statuses(row) == each
    assert row.seeds == tuple(range(len(scores)))


def test_a_switched_off_part_is_the_same_cell_and_another_recipe_is_not(put: Put, folder: Path, later: Store) -> None:
    put(later, (62, 54), (62, 54))
    put(later, (10, 54), (10, 54), options={"distillation": 0.0}, created="2025-03-01T00:00:00+00:00")
    good, off = check(later, folder).cells
    assert (good.variant, good.status, off.status, off.seeds) == ("", "ok", "worse", (0, 1))
    assert off.variant and f"mib (variant {off.variant})" in check_text(check(later, folder))
    other = put(Store(later.path / "other"), (10, 10), recipe={"optim": {"lr": 0.2}})
    unknown, missing = check(other, folder).cells
    assert (unknown.status, unknown.note) == ("no reference", "another recipe than the baseline's")
    assert (missing.status, missing.note, missing.seeds) == ("missing", "no run of its recipe", ())
    assert check(other, folder, Selection(method="mi*", setting="overlapped-15-*")).count("missing") == 1
    put(other, (10, 10), method="plop", setting="overlapped-15-1")
    assert only(check(other, folder, Selection(method="plop"))).status == "no reference"


def test_each_base_of_a_method_has_its_own_baseline(put: Put, later: Store, tmp_path: Path) -> None:
    over = {base: {"method": "ewf", "options": {"base": base, "base_options": {}}} for base in ("mib", "plop")}
    first = put(put(Store(tmp_path / "first"), (62, 54), **over["mib"]), (20, 20), **over["plop"])
    update_baselines(first, tmp_path / "b", ANY, Update("first"))
    put(later, (62, 54), **over["mib"])
    for pattern, states in (("ewf", ["ok", "missing"]), ("ewf over mib", ["ok"]), ("ewf*", ["ok", "missing"])):
        assert [row.status for row in check(later, tmp_path / "b", Selection(method=pattern)).cells] == states


def test_only_what_was_measured_here_is_compared(put: Put, folder: Path, later: Store) -> None:
    put(later, (62, 54))
    put(later, (1, 1), origin="submitted", created="2025-03-01T00:00:00+00:00")
    found = check(later, folder)
    assert only(found).status == "ok" and found.left_out == 1 and found.compared == 1
    assert "not compared: 1 cell." in check_text(found)
    empty = check(Store(later.path / "none"), folder)
    assert only(empty).status == "missing" and empty.compared == 0


def test_real_data_are_compared_with_the_same_data_alone(put: Put, later: Store, tmp_path: Path) -> None:
    put(later, (62, 54), profile="mini", data=MINI)
    update_baselines(later, tmp_path / "b", ANY, Update("first"))
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["mini-mini.json"]
    assert only(check(later, tmp_path / "b")).status == "ok"
    other = put(Store(tmp_path / "other"), (62, 54), profile="mini", data=replace(MINI, fingerprint="f3"))
    assert [row.status for row in check(other, tmp_path / "b").cells] == ["no reference", "missing"]


def test_an_update_keeps_other_cells_and_every_reason(put: Put, folder: Path, later: Store) -> None:
    put(later, (70, 60), (72, 60))
    put(later, (50, 40), method="plop")
    (path,) = update_baselines(later, folder, ANY, Update(" a better schedule "))
    (found,) = read_baselines(folder)
    assert path == folder / "synthetic-quick.json"
    assert [(cell.method, cell.seeds) for cell in found.cells] == [("mib", (0, 1)), ("plop", (0,))]
    assert found.cells[0].old == Figure(71.0, 1.414) and found.cells[1].old == Figure(50.0, None)
    assert [(change.reason, change.cells) for change in found.history] == [("first", 1), ("a better schedule", 2)]
    assert (found.machine, found.command, found.protocol) == (1.0, "cispbench sweep", "strict v1")
    update_baselines(later, folder, Selection(method="plop"), Update("only plop", machine=2.5))
    (found,) = read_baselines(folder)
    assert (found.machine, len(found.cells), found.history[-1].cells) == (2.5, 2, 1)


def test_figures_of_an_older_protocol_do_not_pass_for_new_ones(put: Put, folder: Path, later: Store) -> None:
    (baselines,) = read_baselines(folder)
    write_baselines(folder, replace(baselines, protocol="strict v0"))
    update_baselines(put(later, (50, 40), method="plop"), folder, ANY, Update("plop alone"))
    (found,) = read_baselines(folder)
    assert [cell.method for cell in found.cells] == ["plop"]


@pytest.mark.parametrize("option", ["--tolerance", "--machine"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_tolerances_are_numbers(option: str, value: str) -> None:
    result = CliRunner().invoke(main, ["check", option, value])
    assert result.exit_code == 2 and option in result.stderr


def test_an_update_without_a_change_is_no_entry(put: Put, folder: Path, later: Store) -> None:
    put(later, (70, 60))
    path = folder / "synthetic-quick.json"
    assert update_baselines(later, folder, ANY, Update("second")) == {path: True}
    before = path.read_bytes()
    assert update_baselines(later, folder, ANY, Update("once more")) == {path: False}
    assert path.read_bytes() == before
    assert update_baselines(later, folder, ANY, Update("another machine", 3.0)) == {path: True}
    assert [change.reason for change in read_baselines(folder)[0].history] == ["first", "second", "another machine"]


def test_an_update_is_refused_where_it_would_guess(put: Put, folder: Path, later: Store) -> None:
    before = [path.read_bytes() for path in folder.iterdir()]
    put(later, (70, 60), **PAPER)
    with pytest.raises(UsageError, match="no quick or mini run"):
        update_baselines(later, folder, ANY, Update("x"))
    put(later, (62, 54))
    with pytest.raises(UsageError, match="needs a reason"):
        update_baselines(later, folder, ANY, Update(" "))
    put(later, (10, 54), options={"distillation": 0.0})
    with pytest.raises(StoreError, match="differ in the method's options"):
        update_baselines(later, folder, ANY, Update("x"))
    assert [path.read_bytes() for path in folder.iterdir()] == before


def test_broken_or_outdated_baselines_are_errors(put: Put, folder: Path, later: Store) -> None:
    put(later, (62, 54))
    (baselines,) = read_baselines(folder)
    write_baselines(folder, replace(baselines, protocol="strict v0"))
    with pytest.raises(StoreError, match="strict v0"):
        check(later, folder)
    path = folder / "synthetic-quick.json"
    for text, words in (
        ("{", "cannot read"),
        ('{"schema": 9}', "schema is 9"),
        ('{"schema": 1, "x": 2}', "unknown key 'x'"),
    ):
        path.write_text(text)
        with pytest.raises(StoreError, match=words):
            read_baselines(folder)
    with pytest.raises(StoreError, match="no folder"):
        read_baselines(folder / "none")


# The only own row of MiB with ResNet-101 on disjoint 15-1: 46.2, 12.9 and 37.9, background in neither mean.
@pytest.mark.parametrize(
    ("scores", "status", "each", "allowed"),
    [
        ([(46, 13)], "ok", ["ok", "ok", "ok"], 0.6),
        ([(44, 13)], "worse", ["worse", "ok", "worse"], 0.6),
        ([(46, 15)], "better", ["ok", "better", "ok"], 0.6),
        ([(42, 13), (50, 13)], "ok", ["ok", "ok", "ok"], 2 * math.sqrt(32)),
    ],
)
def test_full_runs_stand_beside_published_numbers_as_those_count(
    put: Put, folder: Path, later: Store, scores: Any, status: str, each: list[str], allowed: float
) -> None:
    put(later, *scores, setting="disjoint-15-1", **PAPER)
    row = only(check(later, folder, Selection(setting="disjoint-15-1"), floor=0.6))
    assert (row.status, statuses(row)) == (status, each)
    assert row.against == "published (own), 1 source"
    assert [entry.reference for entry in row.compared] == [46.2, 12.9, 37.9]
    assert row.compared[0].tolerance == pytest.approx(allowed)
    assert row.compared[2].measured == pytest.approx(sum(15 * old + 5 * new for old, new in scores) / 20 / len(scores))


def test_between_sources_that_differ_nothing_is_worse(put: Put, folder: Path, later: Store) -> None:
    for seed, old in enumerate((1, 5, 60)):  # printed: 4.9, 8.75 with the background, and nothing
        put(Store(later.path / str(old)), *[(old, 8)] * (seed + 1), method="ilt", setting="overlapped-15-1", **PAPER)
        row = only(check(Store(later.path / str(old)), folder, Selection(setting="overlapped-15-1")))
        assert row.compared[0].status == ("worse", "ok", "better")[seed]
    assert row.against == "published (re-run), 3 sources"


def test_a_named_protocol_decides_and_an_unknown_method_has_no_reference(put: Put, folder: Path, later: Store) -> None:
    for method in ("mib", "mine"):
        put(later, (46, 13), method=method, setting="disjoint-15-1", **PAPER)
    mib, mine = check(later, folder, Selection(setting="disjoint-15-1"), protocol="strict").cells
    assert statuses(mine) == ["no reference"] * 3 and mine.note == "nothing published on this backbone"
    assert statuses(mib) == ["ok", "ok", "better"]  # the background counts in all, and is mostly right


def test_json_and_text_say_the_same(put: Put, folder: Path, later: Store) -> None:
    found = check(put(later, (50, 54), (52, 54)), folder)
    told = json.loads(check_json(found))
    assert told["counts"] == {"worse": 1, "missing": 0, "better": 0, "ok": 0, "no reference": 0}
    (cell,) = told["cells"]
    assert (cell["method"], cell["seeds"], cell["status"]) == ("mib", [0, 1], "worse")
    old = cell["scores"]["old"]
    assert (old["measured"], old["reference"], old["status"]) == (51.0, 62.0, "worse")
    assert f"51.00 [62.00 ± {old['tolerance']:.2f}] WORSE" in check_text(found)
    assert check_text(found).splitlines()[-1] == "1 worse."
