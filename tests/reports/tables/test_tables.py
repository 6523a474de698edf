"""Tables: what is measured, what is published, and what may stand side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cispbench.reports.tables.render import render_store, run_table, step_line
from cispbench.results.documents import KINDS
from cispbench.results.ledger import reported_rows
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed, ModelUsed, Timing
from cispbench.results.store import Store
from cispbench.splits.errors import StoreError, UsageError

Maker = Callable[..., StepRecord]
FULL = DataUsed("full", "f0", 10582, 1449, "cd" * 32)
MINI = DataUsed("mini", "f2", 1028, 467, "ef" * 32)
SCENES = DataUsed("synthetic", "f1", 40, 20, "ab" * 32)
RESNET = ModelUsed("deeplabv3-resnet101", 1, "resnet101", "aa" * 32)
VIT = ModelUsed("segmenter-vit-b16", 1, "vit", "bb" * 32)


def matrix(right: int, old_right: int | None = None) -> tuple[tuple[int, ...], ...]:
    """Counts of VOC in which every miss goes to the background: IoU ``right`` percent for each class of 100 pixels."""
    rows = [[0] * 21 for _ in range(21)]
    rows[0][0] = 1000
    for index in range(1, 21):
        rows[index][index] = right if old_right is None or index > 15 else old_right
        rows[index][0] = 100 - rows[index][index]
    return tuple(map(tuple, rows))


def lines_with(text: str, *words: str) -> list[list[str]]:
    """Return the cells of the table's rows that hold all the words."""
    rows = [line for line in text.splitlines() if line.startswith("|") and all(word in line for word in words)]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_a_runs_table_sets_the_measured_row_above_the_published_ones(make_record: Maker) -> None:
    records = [make_record(step=step, data=FULL, model=RESNET, confusion=matrix(40, 75)) for step in (5, 0)]
    text = run_table(records)
    assert "mib on overlapped-15-1 after step 5/5, mIoU in percent, protocol strict" in text
    background = 100 * 1000 / (1000 + 15 * 25 + 5 * 60)
    average = f"{(15 * 75 + 5 * 40 + background) / 21:.2f}"
    assert lines_with(text, "measured")[0][:6] == [
        "mib (measured)", "75.00", "40.00", average, "full data", "deeplabv3-resnet101"
    ]  # fmt: skip
    published = reported_rows("overlapped-15-1", "mib")
    rows = lines_with(text, "MiB")
    assert len(rows) == len(published) > 5
    assert ["MiB", "35.1", "13.5", "29.7", "own"] in [row[:5] for row in rows]
    assert ["MiB", "72.6", "23.5", "60.9", "not known"] in [row[:5] for row in rows]
    assert "NOT comparable" not in text
    assert "not finished" not in text


@pytest.mark.parametrize(
    ("data", "words"),
    [(MINI, "small part of the real data"), (SCENES, "synthetic scenes: these numbers are NOT comparable")],
)
def test_small_data_is_said_not_to_compare(make_record: Maker, data: DataUsed, words: str) -> None:
    text = run_table([make_record(step=5, data=data)])
    assert words in text
    assert "NOT comparable with published ones" in text
    assert lines_with(text, "MiB")


def test_a_runs_table_says_what_is_missing(make_record: Maker) -> None:
    text = run_table([make_record(step=1, method="my|method")])
    assert "after step 1/5 (not finished)" in text
    assert "holds no published numbers for my|method on overlapped-15-1" in text
    assert "my\\|method (measured)" in text
    with pytest.raises(StoreError, match="not of 0"):
        run_table([])
    with pytest.raises(StoreError, match="not of 2"):
        run_table([make_record(), make_record(run_key="other")])
    with pytest.raises(UsageError, match="'strict'"):
        run_table([make_record()], protocol="strikt")


def test_the_protocol_decides_the_numbers(make_record: Maker) -> None:
    records = [make_record(step=5, confusion=matrix(40, 75))]
    assert lines_with(run_table(records, "mib20"), "measured")[0][3] == f"{(15 * 75 + 5 * 40) / 20:.2f}"
    assert "protocol mib20" in run_table(records, "mib20")


def test_the_line_of_a_step(make_record: Maker) -> None:
    record = make_record(step=1, confusion=matrix(44, 71))
    assert step_line(record, "mib20") == "step 1/5  old 71.0  new 44.0  all 69.3  (12.3 s, 210 images/s)"
    first = make_record(step=0, confusion=matrix(44, 71), timing=Timing(1.0, 1.0, 2.0, 3.25, False))
    assert step_line(first, "mib20") == "step 0/5  old 71.0  new -  all 71.0  (2.0 s, 3.2 images/s)"


def joint_record(make_record: Maker, **changes: Any) -> StepRecord:
    base = {"method": "joint", "joint": True, "steps": 1, "classes": tuple(range(1, 21)), "confusion": matrix(40, 75)}
    return make_record(**(base | changes))


def test_a_joint_run_is_scored_over_all_classes(make_record: Maker) -> None:
    record = joint_record(make_record, data=FULL)
    assert step_line(record, "mib20").startswith("step 0/0  old 75.0  new 40.0  all 66.2")
    text = run_table([record])
    assert lines_with(text, "measured")[0][1:3] == ["75.00", "40.00"]
    assert lines_with(text, "Joint", "own")


def test_the_table_of_a_run_shows_the_numbers_of_the_method_s_authors_first(make_record: Maker) -> None:
    text = run_table([make_record("overlapped-15-5", method="mib", step=1)])
    kinds = [line.split("|")[5].strip().rstrip("?") for line in text.splitlines() if line.startswith("| MiB")]
    assert kinds[0] == "own" and {"re-run", "not known"} <= set(kinds)
    assert kinds == sorted(kinds, key=list(KINDS).index)


def test_an_empty_store_has_no_table(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    nothing = f"No finished runs in {tmp_path}. `cispbench run` makes one, --results names another folder"
    assert render_store(store, "markdown").startswith(nothing)
    store.write(make_record(step=3))
    assert render_store(store, "markdown").startswith(nothing)


def test_seeds_are_averaged_and_counted(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    for seed, right in ((0, 40), (1, 50), (2, 60)):
        store.write(
            make_record(step=5, seed=seed, run_key=f"run{seed}", confusion=matrix(right), data=FULL, model=RESNET)
        )
    store.write(make_record("overlapped-19-1", step=1, run_key="run9", confusion=matrix(30), data=FULL, model=RESNET))
    store.write(make_record(step=0, seed=3, run_key="unfinished", data=FULL, model=RESNET))
    text = render_store(store, "markdown", "mib20")
    header = lines_with(text, "seeds")[0]
    assert header[:6] == ["method", "model", *(f"overlapped-19-1 {what}" for what in ("old", "new", "all", "seeds"))]
    (row,) = lines_with(text, "deeplabv3-resnet101")
    assert row[0] == "mib"
    assert row[2].startswith("30.00 [")
    assert row[5] == "1"
    assert row[6].startswith("50.00 ± 10.00 [")
    assert row[8].startswith("50.00 ± 10.00 [29.7]")
    assert row[9] == "3"
    assert "Superseded" not in text


def test_published_numbers_stand_beside_the_same_backbone_on_full_data_alone(
    tmp_path: Path, make_record: Maker
) -> None:
    store = Store(tmp_path)
    for model in (RESNET, VIT, ModelUsed("segmenter-tiny", 1, "none", None)):
        store.write(make_record(step=5, data=FULL, model=model, profile="paper"))
    store.write(make_record(step=5, data=MINI, model=RESNET, profile="mini", run_key="mini"))
    store.write(make_record(step=5, model=RESNET, run_key="synthetic", profile="quick", data=SCENES))
    full, mini, synthetic = render_store(store, "markdown").split("\n\n### ")
    assert "voc, full data, profile paper" in full
    assert "[60.9 to 61.7]" in lines_with(full, "segmenter-vit-b16")[0][4]
    assert "[29.7]" in lines_with(full, "deeplabv3-resnet101")[0][4]
    assert "[" not in lines_with(full, "segmenter-tiny")[0][4]
    assert "NOT comparable" not in full
    for part, words in ((mini, "small part of the real data"), (synthetic, "synthetic scenes")):
        assert "[" not in lines_with(part, "mib")[0][4]
        assert f"Measured on {'a ' if 'small' in words else ''}{words}" in part
        assert "NOT comparable" in part


def test_the_newest_run_of_a_seed_counts(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    times = {"new": "2025-03-01T00:00:00+00:00", "old": "2025-01-01T00:00:00Z", "older": "2024-12-31T23:59:59Z"}
    for right, (name, created) in zip((70, 20, 10), times.items(), strict=True):
        store.write(make_record(step=5, run_key=name, created=created, confusion=matrix(right)))
    text = render_store(store, "markdown", "mib20")
    (row,) = lines_with(text, "mib ")
    assert row[2:] == ["70.00", "70.00", "70.00", "1"]
    assert "Superseded by a newer run of the same seed, and not counted: 2." in text


def test_methods_and_models_have_rows_of_their_own_and_odd_names_stay_in_their_cells(
    tmp_path: Path, make_record: Maker
) -> None:
    store = Store(tmp_path)
    store.write(make_record(step=5, run_key="a", method="b|ad", model=ModelUsed("m|1", 1, "none", None)))
    store.write(make_record("disjoint-15-1", step=5, run_key="b"))
    store.write(joint_record(make_record, run_key="c"))
    text = render_store(store, "markdown")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert any("b\\|ad" in line and "m\\|1" in line for line in table)
    (mib,) = lines_with(text, "mib")
    assert mib[2:6] == ["", "", "", ""]  # nothing on overlapped-15-1
    assert mib[9] == "1"
    assert lines_with(text, "| joint")[0][2:4] == ["75.00", "40.00"]


def test_a_missing_number_is_a_dash(tmp_path: Path, make_record: Maker) -> None:
    rows = [list(row) for row in matrix(50)]
    for index in range(16, 21):
        rows[index] = [0] * 21
    store = Store(tmp_path)
    for seed in (0, 1):
        store.write(make_record(step=5, seed=seed, run_key=f"r{seed}", confusion=rows))
    assert lines_with(render_store(store, "markdown"), "mib")[0][2:4] == ["50.00 ± 0.00", "-"]


def test_runs_of_another_recipe_are_not_counted_as_seeds(make_record: Maker, tmp_path: Path) -> None:
    store = Store(tmp_path)
    usual = {"step": 5, "recipe": {"lr": 1}}
    store.write(make_record(**usual, seed=0, run_key="a" * 16, key="a"))
    store.write(make_record(**usual, seed=1, run_key="b" * 16, key="b"))
    later = {"created": "2031-01-01T00:00:00+00:00", "step": 5, "seed": 0}
    store.write(make_record(**{**later, "recipe": {"lr": 2}}, run_key="c" * 16, key="c"))
    rows = [line.split("|") for line in render_store(store, "markdown").splitlines() if line.startswith("| mib")]
    assert [row[1].strip().split(" ")[0] for row in rows] == ["mib", "mib"]
    assert [row[6].strip() for row in rows] == ["2", "1"]
    assert "(variant " in rows[1][1]
