"""Seeds of a method of another package that was edited between them are never averaged without a word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cispbench.reports.tables.cells import cells
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import MethodUsed
from cispbench.results.store import Store


@pytest.mark.parametrize(("built_in", "rows"), [(False, [[0], [1]]), (True, [[0, 1]])])
def test_seeds_of_other_code(
    tmp_path: Path, make_record: Callable[..., StepRecord], built_in: bool, rows: list[list[int]]
) -> None:
    store = Store(tmp_path)
    package = {} if built_in else {"method_package": {"name": "mine"}}
    for seed, code in enumerate(("ab" * 32, "cd" * 32)):
        for step in (0, 1):
            fields = {"seed": seed, "run_key": f"{seed}" * 16, "environment": {"python": "3.11"} | package}
            record = make_record("overlapped-15-5", step, **fields)
            store.write(replace(record, method=MethodUsed("mine", 1, {}, code)))
    assert [[run.facts.seed for run in cell.runs] for cell in cells(load_runs(store))] == rows
