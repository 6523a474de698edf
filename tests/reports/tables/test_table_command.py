"""``cispbench table``: rows, columns, ranks and published numbers, in every format, on a terminal and in files."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cispbench.harness.cli import main
from cispbench.reports.tables.cells import cells
from cispbench.reports.tables.numbers import number_text, ranks, signed
from cispbench.reports.tables.published import closest
from cispbench.reports.tables.render import DATA_FORMATS, FORMATS, render_store
from cispbench.reports.tables.runs import NUMBERS
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.continual import METRICS
from cispbench.results.ledger import reported_rows
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed, ModelUsed
from cispbench.results.store import Store
from cispbench.splits.errors import UsageError

Maker = Callable[..., StepRecord]
FULL = DataUsed("full", "f0", 10582, 1449, "cd" * 32)
RESNET = ModelUsed("deeplabv3-resnet101", 1, "resnet101", "aa" * 32)


def matrix(old: int, new: int) -> tuple[tuple[int, ...], ...]:
    """Counts of VOC in which every miss goes to the background: 100 pixels a class, so many right."""
    rows = [[0] * 21 for _ in range(21)]
    rows[0][0] = 1000
    for index in range(1, 21):
        rows[index][index] = old if index <= 15 else new
        rows[index][0] = 100 - rows[index][index]
    return tuple(map(tuple, rows))


def write(store: Store, make_record: Maker, method: str, old: int, new: int, **changes: Any) -> None:
    """Write both steps of a run on 15-5."""
    seed = changes.get("seed", 0)
    fields = {"method": method, "model": RESNET, "data": FULL, "run_key": f"{method}{seed}".ljust(16, "0")} | changes
    for step in (0, 1):
        store.write(make_record("overlapped-15-5", step=step, confusion=matrix(old, new), **fields))


@pytest.fixture
def store(tmp_path: Path, make_record: Maker) -> Store:
    """Three methods and joint training on 15-5, the first by two seeds, one of them on 19-1 as well."""
    store = Store(tmp_path / "out")
    write(store, make_record, "mib", 70, 40)
    write(store, make_record, "mib", 74, 44, seed=1)
    write(store, make_record, "plop", 60, 42)
    write(store, make_record, "a|b<c>", 50, 10, run_key="odd" * 5)
    joint = {"joint": True, "steps": 1, "classes": tuple(range(1, 21)), "method": "joint", "model": RESNET}
    store.write(make_record("overlapped-15-5", data=FULL, confusion=matrix(90, 90), run_key="joint" * 4, **joint))
    store.write(make_record("overlapped-19-1", step=1, data=FULL, model=RESNET, confusion=matrix(30, 30), run_key="x"))
    return store


def run(store: Store, *words: str) -> Result:
    return CliRunner().invoke(main, ["table", "--out", str(store.path), *words])


def told(store: Store, *words: str) -> str:
    result = run(store, *words)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows_of(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_methods_stand_below_each_other_and_settings_side_by_side(store: Store) -> None:
    rows = rows_of(told(store, "--protocol", "mib20", "--no-published"))
    settings = ("overlapped-19-1", "overlapped-15-5")
    names = [f"{setting} {what}" for setting in settings for what in ("old", "new", "all", "seeds")]
    assert rows["method"] == ["model", *names]
    assert list(rows)[2:] == ["a\\|b\\<c>", "mib", "plop", "joint"]  # joint training comes last
    spread = f"± {statistics.stdev([70, 74]):.2f}"
    assert rows["mib"][5:] == [f"**{mean} {spread}**" for mean in ("72.00", "42.00", "64.50")] + ["2"]
    assert rows["plop"][1:] == ["", "", "", "", "<ins>60.00</ins>", "**42.00**", "<ins>55.50</ins>", "1"]
    assert rows["a\\|b\\<c>"][5:] == ["50.00", "<ins>10.00</ins>", "40.00", "1"]
    assert rows["joint"][5:] == ["90.00", "90.00", "90.00", "1"]  # and is not ranked
    assert rows["mib"][1] == "30.00"  # alone in its column


def test_ranks_go_by_what_is_shown() -> None:
    assert ranks([70.001, 60.0, None, 70.004, 50.0], 2) == [1, 2, 0, 1, 0]
    assert ranks([70.001, 60.0, 70.004], 3) == [2, 0, 1]
    assert ranks([5.0, 5.0, 5.0], 1) == [1, 1, 1]
    assert ranks([5.0], 1) == ranks([5.0, None, float("nan")], 1)[:1] == [0]
    assert ranks([3.0, 1.0, 2.0], 1, lower=True) == [0, 1, 2]
    assert ranks([-0.001, 0.001, -1.0], 2) == [1, 1, 2]
    assert ranks([9.5, 10.5], 1) == [2, 1]


def test_numbers_as_shown() -> None:
    assert [number_text(value, 1) for value in (77.25, -0.04, float("nan"))] == ["77.2", "0.0", "-"]
    assert [signed(value, 1) for value in (0.04, 1.0, -1.0)] == ["0.0", "+1.0", "-1.0"]


def test_published_numbers_stand_beside_measured_ones(store: Store) -> None:
    plain, full, none = (rows_of(told(store, *words)) for words in ((), ("--published",), ("--no-published",)))
    (cell,) = (
        cell for cell in cells(load_runs(store)) if (cell.key.method, cell.setting) == ("plop", "overlapped-15-5")
    )
    near = closest(cell)
    printed = sorted({entry.row["old"] for entry in near if entry.row["old"] is not None})
    assert printed
    range_text = str(printed[0]) if len(printed) == 1 else f"{printed[0]} to {printed[-1]}"
    assert plain["plop"][5].endswith(f" [{range_text}]</ins>")
    assert "[" not in none["plop"][5]
    low, high = (signed(60 - value, 2) for value in (printed[-1], printed[0]))
    differences = low if low == high else f"{low} to {high}"
    assert full["plop"][5].endswith(f" [{range_text}, {differences}]</ins>")


def test_published_rows_are_listed_with_their_sources(store: Store) -> None:
    text = told(store, "--published", "--method", "plop")
    listed = text.partition("published rows of the methods measured")[2]
    lines = [line for line in listed.splitlines() if line.startswith("| overlapped-15-5")]
    rows = reported_rows("overlapped-15-5", "plop")
    assert len(lines) == len(rows) > 2
    sources = dict(re.findall(r"^\\?(\[\d+\]) (.*)", listed, re.MULTILINE))
    for row in rows:
        lines_of = [line for line in lines if row["kind"] in line and str(row["all"]) in line]
        told_sources = [sources[number] for line in lines_of for number in re.findall(r"\[\d+\]", line)]
        assert any(row["source"][:20] in source for source in told_sources)
    assert any("(another)" in line for line in lines) == any("ResNet" not in row["backbone"] for row in rows)


@pytest.mark.parametrize("form", FORMATS)
def test_data_of_other_kinds_is_in_a_table_of_its_own_without_published_numbers(
    store: Store, make_record: Maker, form: str
) -> None:
    write(store, make_record, "mib", 99, 98, data=replace(FULL, kind="mini"), profile="mini", run_key="m" * 16)
    text = told(store, "--published", "--format", form, "--setting", "overlapped-15-5", "--method", "mib")
    if form == "json":
        mini, full = sorted(json.loads(text), key=lambda row: row["comparable"])
        assert mini["published"] == [] and full["published"]
        assert (mini["data"], mini["profile"], mini["comparable"]) == ("mini", "mini", False)
    elif form == "csv":
        mini, full = sorted(csv.DictReader(io.StringIO(text)), key=lambda row: row["comparable"])
        assert not any(mini[name] for name in mini if name.startswith(("published", "difference")))
        assert full["published_kind"]
    else:
        parts = [part for part in re.split(r"(?=voc, (?:full|mini) data)", text) if part.startswith("voc, ")]
        (mini,) = (part for part in parts if part.startswith("voc, mini"))
        assert "NOT comparable" in mini and "99.00" in mini
        assert not any(mark in mini for mark in ("99.00 [", "99.00 {[}", "**99", "textbf{99", "strong>99"))
        assert all("99.00" not in part and "NOT comparable" not in part for part in parts if part is not mini)


def test_json_and_csv_hold_every_number_unrounded(store: Store) -> None:
    found = {(row["method"], row["setting"]): row for row in json.loads(told(store, "--json", "--decimals", "0"))}
    assert told(store, "--json") == told(store, "--format", "json")
    made = cells(load_runs(store))
    table = {
        (row["method"], row["setting"]): row for row in csv.DictReader(io.StringIO(told(store, "--format", "csv")))
    }
    assert set(found) == {(cell.key.method, cell.setting) for cell in made} == set(table)
    for cell in made:
        entry, line = found[cell.key.method, cell.setting], table[cell.key.method, cell.setting]
        for name in NUMBERS:
            number = cell.numbers[name]
            for key, value in ((name, number.mean), (f"{name}_std", number.std)):
                assert entry[key] == (value if value == value else None)
                assert line[key] == (repr(value) if value == value else "")
        assert entry["seeds"] == len(entry["runs"]) == int(line["seeds"])
        assert [run["run_key"] for run in entry["runs"]] == line["run_key"].split()
    assert found["mib", "overlapped-15-5"]["run_key"] is None
    assert found["plop", "overlapped-15-5"]["run_key"] == "plop0".ljust(16, "0")
    assert found["mib", "overlapped-15-5"]["forgetting"] == 0.0
    assert found["mib", "overlapped-15-5"]["intransigence"] == pytest.approx(90 - 42)
    assert found["mib", "overlapped-19-1"]["forgetting"] is None  # its first step has no record


def test_one_row_a_run(store: Store) -> None:
    rows = json.loads(told(store, "--runs", "--json"))
    assert len(rows) == 6
    assert {"dataset", "setting", "method", "model", "profile", "data", "seed", "run_key", "protocol", "old", "new",
            "all", "harmonic", "pixel_accuracy", *METRICS} <= set(rows[0])  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(told(store, "--runs", "--format", "csv"))))
    assert [line["run_key"] for line in lines] == [row["run_key"] for row in rows]
    for form in sorted(set(FORMATS) - set(DATA_FORMATS)):
        text = told(store, "--runs", "--format", form, "--columns", "old,seeds,forgetting")
        assert all(row["run_key"][:10] in text for row in rows)
        assert "70.00" in text and "74.00" in text and "72.00" not in text


def test_columns_decimals_and_metrics(store: Store) -> None:
    rows = rows_of(told(store, "--columns", "all, forgetting", "--decimals", "1", "--setting", "overlapped-15-5"))
    assert rows["method"] == ["model", "overlapped-15-5 all", "overlapped-15-5 forgetting"]
    assert re.fullmatch(r"\*\*\d\d\.\d ± \d\.\d( \[.*\])?\*\*", rows["mib"][1])
    assert rows["plop"][2] == "**0.0**" and rows["joint"][2] == "-"
    text = told(store, "--metrics", "--no-published", "--setting", "overlapped-15-5")
    named = [name.removeprefix("overlapped-15-5 ") for name in rows_of(text)["method"][1:]]
    assert named == ["old", "new", "all", "average over steps", "forgetting", "backward transfer", "intransigence",
                     "harmonic mean", "seeds"]  # fmt: skip
    assert rows_of(text)["a\\|b\\<c>"][7] == "<ins>80.00</ins>"  # intransigence: the lower, the better
    assert rows_of(text)["mib"][7].startswith("**48.00")
    assert "lower is better" in text


def test_latex_has_no_seeds_unless_asked(store: Store) -> None:
    assert "seeds &" not in told(store, "--format", "latex") and "& seeds" not in told(store, "--format", "latex")
    assert "& seeds" in told(store, "--format", "latex", "--columns", "old,seeds")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--format", "markdow"], "Did you mean 'markdown'?"), (["--columns", "old,forgeting"], "'forgetting'"),
        (["--columns", "old,old"], "once each"), (["--columns", ""], "unknown column ''"),
        (["--json", "--format", "csv"], "do not go together"), (["--output", "table.doc"], "Give --format"),
        (["--compare-protocols", "--format", "latex"], "markdown and json"), (["--decimals", "11"], "0<=x<=10"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused(store: Store, words: list[str], says: str) -> None:
    result = run(store, *words)
    assert result.exit_code == 2
    assert says in result.output
    with pytest.raises(UsageError, match="'csv'"):
        render_store(store, "cvs")


@pytest.mark.parametrize("ending", ["md", "tex", "csv", "json", "html", "txt"])
def test_a_file_holds_what_is_printed(store: Store, tmp_path: Path, ending: str) -> None:
    names = {"md": "markdown", "tex": "latex", "txt": "terminal"}
    path = tmp_path / f"table.{ending.upper() if ending == 'md' else ending}"
    assert told(store, "--output", str(path)) == ""
    assert path.read_text() == told(store, "--format", names.get(ending, ending))
    assert path.read_text().endswith("\n")
    before = path.read_bytes()
    result = run(store, "--method", "nobody", "--output", str(path))
    assert result.exit_code == 2 and path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["out", path.name])


def test_a_file_that_cannot_be_written_is_an_error(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "table.md"
    result = run(store, "--output", str(path))
    assert result.exit_code == 1
    assert str(path) in result.output and "does not exist" in result.output


def test_the_format_named_is_stronger_than_the_ending(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    told(store, "--output", str(path), "--format", "csv")
    assert path.read_text().startswith("dataset,")


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_store_has_an_empty_table(tmp_path: Path, form: str) -> None:
    text = told(Store(tmp_path), "--format", form)
    if form in DATA_FORMATS:
        assert text == ("[]\n" if form == "json" else "")
    else:
        assert f"No finished runs in {tmp_path}." in text


def test_marks_are_for_a_terminal_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in told(store, "--format", "terminal")
    assert "\x1b[1m" in render_store(store, "terminal", marked=True)


@pytest.mark.parametrize("form", FORMATS)
def test_the_bytes_are_the_same_each_time(store: Store, form: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "out"
    shutil.copytree(store.path, copy)
    assert told(store, "--format", form, "--published") == told(Store(copy), "--format", form, "--published")


def test_help_names_every_format_and_column() -> None:
    text = CliRunner().invoke(main, ["table", "--help"]).output
    assert all(name in text for name in FORMATS)
