"""Runs on several devices: the same up to rounding, and yet never averaged with those on one without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cispbench.reports.plots.gallery import plan_pictures
from cispbench.reports.tables.cells import cells
from cispbench.reports.tables.render import render_store
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import Execution
from cispbench.results.store import Store

Maker = Callable[..., StepRecord]


def write_run(store: Store, make_record: Maker, seed: int, *devices: int) -> None:
    """Write the steps of a run on 15-5, each trained on so many devices."""
    for step, count in enumerate(devices):
        execution = Execution(count, None)
        run_key = f"{seed}{''.join(map(str, devices))}".ljust(16, "0")
        store.write(make_record("overlapped-15-5", step=step, seed=seed, run_key=run_key, execution=execution))


def test_seeds_on_other_numbers_of_devices_have_rows_of_their_own(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    write_run(store, make_record, 0, 1, 1)
    write_run(store, make_record, 1, 1, 1)
    write_run(store, make_record, 2, 2, 2)
    write_run(store, make_record, 3, 1, 2)
    seeds = {cell.key.remark(): [run.facts.seed for run in cell.runs] for cell in cells(load_runs(store))}
    assert seeds == {"": [0, 1], "2 devices": [2], "1 and 2 devices": [3]}
    text = render_store(store, "markdown")
    assert "(2 devices)" in text and "(1 and 2 devices)" in text
    assert "never averaged together" in text


def test_a_store_of_one_number_of_devices_says_nothing_of_them(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    write_run(store, make_record, 0, 1, 1)
    assert "device" not in render_store(store, "markdown")


@pytest.mark.parametrize("kind", ["classes", "confusion"])
def test_their_pictures_have_files_of_their_own(tmp_path: Path, make_record: Maker, kind: str) -> None:
    store = Store(tmp_path)
    write_run(store, make_record, 0, 1, 1)
    write_run(store, make_record, 1, 2, 2)
    paths = [picture.path for picture in plan_pictures(store, kinds=[kind])]
    assert len(set(paths)) == len(paths) == 2
