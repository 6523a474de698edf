"""Partitions drawn with different seeds are different settings: never averaged, and told apart by their headings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cispbench.reports.leaderboard.board import load_leaderboard
from cispbench.reports.leaderboard.page import render_pages
from cispbench.reports.tables.cells import cells
from cispbench.reports.tables.grid import TableOptions
from cispbench.reports.tables.render import render_store
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.record import StepRecord
from cispbench.results.store import Store


def test_seeds_of_a_partition_stand_apart(tmp_path: Path, make_record: Callable[..., StepRecord]) -> None:
    store = Store(tmp_path)
    names = ["partitioned-15-5", "partitioned-15-5-s1"]
    for place, name in enumerate(names):
        store.write(make_record(name, step=1, run_key=f"{place}" * 16))
    assert [cell.setting for cell in cells(load_runs(store))] == names
    latex = render_store(store, "latex", "strict", options=TableOptions())
    assert "partitioned 15-5, seed 0 (2 steps)" in latex and "partitioned 15-5, seed 1 (2 steps)" in latex
    page = render_pages(load_leaderboard(store))["mini.html"]
    assert 'title="partitioned-15-5">15-5<' in page and 'title="partitioned-15-5-s1">15-5-s1<' in page
