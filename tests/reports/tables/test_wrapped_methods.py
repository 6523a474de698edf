"""A method that changes another one has a row for each base, beside what was published for the two together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cispbench.reports.leaderboard.board import load_leaderboard
from cispbench.reports.leaderboard.paper import render_paper
from cispbench.reports.tables.cells import cells
from cispbench.reports.tables.render import render_store, run_table
from cispbench.reports.tables.runs import Selection
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.record_fields import MethodUsed, has_title, method_title
from cispbench.results.store import Store
from tests.reports.conftest import put_run


def put_over(store: Store, base: str, setting: str, *scores: tuple[int, int], **changes: Any) -> None:
    put_run(store, "ewf", setting, *scores, method=MethodUsed("ewf", 1, {"base": base, "base_options": {}}), **changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """EWF over MiB and over PLOP, near what was published for EWF+MiB and for EWF, and over LwF, as near to EWF."""
    store = Store(tmp_path)
    for base, new in (("mib", 25), ("plop", 30), ("lwf", 33)):
        put_over(store, base, "overlapped-15-1", (78, new))
    return store


def test_each_base_is_a_row_and_no_variant(store: Store) -> None:
    found = [(cell.key.method, cell.key.variant) for cell in cells(load_runs(store))]
    assert found == [("ewf over lwf", ""), ("ewf over mib", ""), ("ewf over plop", "")]
    rows = [line for line in render_store(store, "latex").splitlines() if "EWF" in line]
    assert [row.split("&")[0].strip() for row in rows] == ["EWF over LwF", "EWF over MiB", "EWF over PLOP"]
    assert ["[" in row for row in rows] == [False, True, True]


def test_a_runs_table_names_the_base_and_the_rows_of_that_base(store: Store) -> None:
    rows = {"mib": {"EWF+MiB"}, "plop": {"EWF"}, "lwf": set()}
    for record in store.records():
        base, text = record.method.options["base"], run_table([record])
        assert text.startswith(f"ewf over {base} on overlapped-15-1")
        assert set(re.findall(r"\bEWF\S*", text)) == rows[base]


def test_a_published_number_is_compared_with_its_own_base_alone(store: Store) -> None:
    boards = load_leaderboard(store).boards
    entries = [entry for board in boards for entry in board.entries if "overlapped-15-1" in entry.by_setting]
    total = {entry.method: entry.by_setting["overlapped-15-1"][2].standing.why for entry in entries}
    assert "printed 65.5" in total["ewf over mib"] and "printed 67.0" in total["ewf over plop"]
    assert total["ewf over lwf"].startswith("Nothing is published")
    # Over LwF 68.0 is measured, which is nearer to 67.0 than what is measured over PLOP.
    over = {cell.key.method: cell.numbers["all"].mean for cell in cells(load_runs(store))}
    assert f"Measured {over['ewf over plop']:.2f}" in total["EWF"] and f"{over['ewf over mib']:.2f}" in total["EWF+MiB"]


@pytest.mark.parametrize("setting", ["overlapped-19-1", "overlapped-15-1"])
def test_the_table_of_a_paper_has_the_run_that_its_status_is_of(tmp_path: Path, setting: str) -> None:
    store = Store(tmp_path)
    put_over(store, "plop", setting, (60, 5))
    tables = {name: render_paper(load_leaderboard(store), name, "markdown") for name in ("EWF", "EWF+MiB")}
    assert {name: len(re.findall(r"\| here +\|", text)) for name, text in tables.items()} == {"EWF": 1, "EWF+MiB": 0}


@pytest.mark.parametrize(
    ("pattern", "bases"),
    [
        ("ewf", {"lwf", "mib", "plop"}),
        ("ewf over m*", {"mib"}),
        ("ewf over plop", {"plop"}),
        ("*", {"lwf", "mib", "plop"}),
    ],
)
def test_a_method_is_selected_by_its_name_or_its_title(store: Store, pattern: str, bases: set[str]) -> None:
    runs = load_runs(store, selection=Selection(method=pattern))
    assert {run.facts.method.options["base"] for run in runs} == bases


def test_all_of_one_store_name_a_method_alike(store: Store) -> None:
    titles = {"ewf over lwf", "ewf over mib", "ewf over plop"}
    for each in (False, True):
        assert {row["method"] for row in json.loads(render_store(store, "json", each=each))} == titles
        assert all(title in render_store(store, form, each=each) for title in titles for form in ("csv", "markdown"))


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({"base": "mib", "base_options": {"alpha": 1}}, "ewf over mib"),
        ({"base": "ewf", "base_options": {"base": "mib", "base_options": {}}}, "ewf over ewf over mib"),
        ({"base": "mib"}, "ewf"),
        ({"base": 2.0, "base_options": {}}, "ewf"),
        ({"base": "", "base_options": {}}, "ewf"),
        ({"base": "x\x1b[31mred\nnext", "base_options": {}}, "ewf"),
        ({"base": "mib", "base_options": 3}, "ewf"),
    ],
)
def test_odd_options_leave_the_name(options: dict[str, Any], title: str) -> None:
    assert method_title("ewf", options) == MethodUsed("ewf", 1, options).title == title
    assert has_title(title, "ewf") and has_title(title, title) and not has_title(title, "mib")
