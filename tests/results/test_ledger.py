"""The ledger of published numbers and the arithmetic that lints it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cispbench.results import ledger
from cispbench.results.ledger import lint_row, load_reported, reported_rows
from cispbench.splits.errors import SettingError, StoreError
from cispbench.splits.settings import paper_table, parse_setting
from cispbench.splits.strict_yaml import load_yaml


def labels(source: str) -> Counter[str]:
    frame = load_reported()
    rows = frame[frame["source"].str.contains(source, regex=False)]
    return Counter(lint_row(row) for _, row in rows.iterrows())


def test_the_ledger_is_whole() -> None:
    frame = load_reported()
    assert len(frame) == 833
    assert Counter(frame["dataset"]) == {"voc": 567, "ade": 266}
    assert Counter(frame["kind"]) == {"excerpted": 516, "reported": 268, "reproduced": 49}
    assert frame["all"].between(0, 100).all()
    assert frame["old"].isna().sum() == frame["new"].isna().sum() == 176
    assert {"setting", "method", "backbone", "source", "note", "assignment"} <= set(frame.columns)
    assert {setting.name for setting in paper_table()} <= set(frame["setting"])


def test_every_row_is_that_of_the_reference(shared: Path) -> None:
    def items(row: dict[str, Any]) -> list[tuple[str, Any]]:
        dropped = ("scenario", "task")
        return sorted(
            (key, value) for key, value in row.items() if value == value and value is not None and key not in dropped
        )

    reference = sorted(items(row) for row in load_yaml(shared / "reported.yaml"))
    assert sorted(items(row) for row in load_reported().to_dict("records")) == reference


def test_the_papers_use_the_conventions_known_of_them() -> None:
    assert labels("fcdl94/MiB:voc-tab.png") == {"without": 54}
    assert labels("fcdl94/MiB:ade-tab.png") == {"without": 16, "inconsistent": 2}
    # ILT on 15-1 prints three numbers so close that both readings fit; PLOP on 15-5 prints 70.09 where they give 70.01.
    assert labels("arthurdouillard/CVPR2021_PLOP:images/plop_voc.png") == {"both": 7, "without": 1, "inconsistent": 1}
    incrementer = [row for row in load_reported().to_dict("records") if row["method"] == "Incrementer"]
    voc = Counter(lint_row(row) for row in incrementer if row["dataset"] == "voc")
    assert voc == {"old-without": 6, "incomplete": 3}


def test_lint_over_the_whole_ledger() -> None:
    found = Counter(lint_row(row) for row in load_reported().to_dict("records"))
    assert found == {"without": 299, "both": 302, "old-without": 29, "inconsistent": 27, "incomplete": 176}


def test_rows_of_a_method_by_either_name() -> None:
    rows = reported_rows("overlapped-15-1", "mib")
    assert rows
    assert {row["method"] for row in rows} == {"MiB"}
    assert {row["setting"] for row in rows} == {"overlapped-15-1"}
    assert rows == reported_rows("voc:overlapped-15-1-a", "MiB")
    assert {row["method"] for row in reported_rows("disjoint-15-1", "finetune")} == {"FT"}
    assert {row["method"] for row in reported_rows("disjoint-15-1", "ft")} == {"FT"}
    assert {row["method"] for row in reported_rows("disjoint-15-1", "lwf_mc")} == {"LwF-MC"}
    assert {row["method"] for row in reported_rows("overlapped-15-1", "ssul-m")} == {"SSUL-M"}
    assert {row["method"] for row in reported_rows("overlapped-100-10", "mbs")} == {"MBS"}
    assert reported_rows("overlapped-100-10", "joint")
    assert reported_rows("overlapped-15-1-b", "mib") == []
    assert reported_rows("partitioned-100-10", "mib") == []
    assert reported_rows("overlapped-15-1", "unheard of") == []
    with pytest.raises(SettingError):
        reported_rows("overlapped", "mib")


def test_rows_are_the_callers_own() -> None:
    reported_rows("overlapped-15-1", "mib")[0]["all"] = -1
    assert reported_rows("overlapped-15-1", "mib")[0]["all"] > 0


def test_no_two_published_names_are_one_without_punctuation() -> None:
    names = set(load_reported()["method"])
    assert len({"".join(filter(str.isalnum, name.lower())) for name in names}) == len(names)


def test_rows_need_no_pandas() -> None:
    code = (
        "import sys; from cispbench.results.ledger import reported_rows; reported_rows('overlapped-15-1', 'mib');"
        "print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ROW = {
    "dataset": "voc",
    "setting": "overlapped-15-1",
    "method": "X",
    "backbone": "B",
    "old": 70.0,
    "new": 30.0,
    "all": 60.0,
    "kind": "reported",
    "source": "S",
}


@pytest.fixture
def one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(ledger, "_FOLDER", tmp_path)
    yield tmp_path / "voc-overlapped.yaml"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metod": "X"}, ["unknown key 'metod'", "'method'"]),
        ({"source": None}, ["source is None"]),
        ({"source": " "}, ["source is ' '"]),
        ({"old": "70"}, ["old is '70'"]),
        ({"old": 101.0}, ["old is 101.0"]),
        ({"new": True}, ["new is True"]),
        ({"all": [1.0]}, ["all is [1.0]"]),
        ({"old": None, "new": None, "all": None}, ["none of old, new and all"]),
        ({"kind": "rumoured"}, ["'rumoured'", "excerpted"]),
        ({"setting": "overlapped-15-7"}, ["15-7", "voc has 20"]),
        ({"setting": "disjoint-15-1"}, ["voc-disjoint.yaml"]),
        ({"setting": "overlapped-15-1-a"}, ["as overlapped-15-1"]),
        ({"dataset": "ade"}, ["of ade"]),
    ],
)
def test_a_broken_row_is_named(one_file: Path, change: dict[str, Any], words: list[str]) -> None:
    one_file.write_text(json.dumps([ROW, ROW | change]))
    with pytest.raises(StoreError) as caught:
        load_reported()
    assert str(caught.value).startswith(f"{one_file} row 2")
    for word in words:
        assert word in str(caught.value)


def test_a_missing_key_and_a_file_that_is_no_list_are_named(one_file: Path) -> None:
    one_file.write_text(json.dumps([{key: value for key, value in ROW.items() if key != "old"}, "row"]))
    with pytest.raises(StoreError, match="row 1: old is missing"):
        load_reported()
    one_file.with_name("voc-disjoint.yaml").write_text("{}")
    with pytest.raises(StoreError, match="no list of rows"):
        reported_rows("disjoint-15-1", "x")


@pytest.mark.parametrize(
    ("setting", "old", "new", "total", "label"),
    [
        ("disjoint-15-1", 37.9, 5.0, 29.7, "without"),  # 29.675
        ("overlapped-15-1", 65.12, 21.11, 54.64, "both"),
        ("overlapped-15-1", 79.6, 59.6, 75.6, "old-without"),  # background 95.6
        ("overlapped-15-5", 75.73, 51.71, 70.09, "inconsistent"),
        ("overlapped-15-1", 79.6, 59.6, 90.0, "inconsistent"),
        ("overlapped-15-1", None, 59.6, 75.6, "incomplete"),
        ("overlapped-15-1", float("nan"), 59.6, 75.6, "incomplete"),
    ],
)
def test_lint_by_hand(setting: str, old: float | None, new: float, total: float, label: str) -> None:
    assert lint_row({"setting": setting, "old": old, "new": new, "all": total}) == label


def test_a_row_without_a_number_is_incomplete() -> None:
    assert lint_row({"setting": "overlapped-15-1", "old": 1.0, "new": 2.0}) == "incomplete"


percent = st.floats(0, 100)
names = st.sampled_from([setting.name for setting in paper_table()])


@given(
    names,
    percent,
    percent,
    st.floats(80, 100),
    st.sampled_from([1, 2]),
    st.sampled_from(["without", "both", "old-without"]),
)
def test_honest_rows_are_never_inconsistent(
    name: str, old: float, new: float, background: float, digits: int, convention: str
) -> None:
    setting = parse_setting(name)
    num_old, count = len(setting.steps[0].classes), setting.num_foreground
    foreground = num_old * old + (count - num_old) * new
    total = foreground / count if convention == "without" else (foreground + background) / (count + 1)
    if convention == "both":
        old = (num_old * old + background) / (num_old + 1)
    row = {"setting": name, "old": round(old, digits), "new": round(new, digits), "all": round(total, digits)}
    order = ["without", "both", "old-without", "inconsistent"]
    assert order.index(lint_row(row)) <= order.index(convention)


@given(names, percent, percent, st.floats(0.2, 50), st.booleans())
def test_an_all_outside_every_reading_is_inconsistent(
    name: str, old: float, new: float, off: float, above: bool
) -> None:
    setting = parse_setting(name)
    num_old, count = len(setting.steps[0].classes), setting.num_foreground
    foreground = num_old * old + (count - num_old) * new
    readings = [foreground / count, (foreground + old) / (count + 1)]
    readings += [(foreground + background) / (count + 1) for background in (80, 100)]
    total = max(readings) + off if above else min(readings) - off
    assume(0 <= total <= 100)
    row = {"setting": name, "old": round(old, 1), "new": round(new, 1), "all": round(total, 1)}
    assert lint_row(row) == "inconsistent"
