"""A method that changes another one has a row for each base, beside what was published for the two together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cispbench.reports.leaderboard.board import load_leaderboard
from cispbench.reports.tables.cells import cells
from cispbench.reports.tables.render import render_store, run_table
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.record_fields import MethodUsed
from cispbench.results.store import Store
from tests.reports.conftest import put_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """EWF over MiB and over PLOP, near what was published for EWF+MiB and for EWF."""
    store = Store(tmp_path)
    for base, new in (("mib", 25), ("plop", 33)):
        used = MethodUsed("ewf", 1, {"base": base, "base_options": {}})
        put_run(store, "ewf", "overlapped-15-1", (78, new), method=used)
    return store


def test_each_base_is_a_row_and_no_variant(store: Store) -> None:
    found = cells(load_runs(store))
    assert [(cell.key.method, cell.key.variant) for cell in found] == [("ewf over mib", ""), ("ewf over plop", "")]
    rows = [line for line in render_store(store, "latex").splitlines() if "EWF" in line]
    assert [row.split("&")[0].strip() for row in rows] == ["EWF+MiB", "EWF"]


def test_a_runs_table_names_the_base_and_the_rows_of_that_base(store: Store) -> None:
    for record in store.records():
        base = record.method.options["base"]
        text = run_table([record])
        assert text.startswith(f"ewf over {base} on overlapped-15-1")
        assert set(re.findall(r"\bEWF\S*", text)) == ({"EWF+MiB"} if base == "mib" else {"EWF"})


def test_the_leaderboard_compares_each_with_its_own_rows(store: Store) -> None:
    found = load_leaderboard(store)
    here = {
        entry.method: entry.by_setting["overlapped-15-1"]
        for board in found.boards
        for entry in board.entries
        if entry.method.startswith("ewf")
    }
    assert "printed 65.5" in here["ewf over mib"][2].standing.why
    assert "printed 67.0" in here["ewf over plop"][2].standing.why
