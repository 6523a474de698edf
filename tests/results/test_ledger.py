"""The ledger of published numbers: whole, equal to its reference, and found by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cispbench.results import ledger
from cispbench.results.ledger import (
    find_published_name,
    ledger_rows,
    load_reported,
    published_name,
    reported_rows,
)
from cispbench.splits.errors import SettingError, StoreError, UsageError
from cispbench.splits.settings import paper_table


def test_the_ledger_is_whole() -> None:
    frame = load_reported()
    assert len(frame) == 683
    assert Counter(frame["dataset"]) == {"voc": 480, "ade": 203}
    assert Counter(frame["kind"]) == {"own": 209, "quoted": 183, "re-run": 129, "not known": 162}
    assert frame["all"].between(0, 100).all()
    assert frame["old"].isna().sum() == frame["new"].isna().sum() == 122
    assert {"setting", "method", "backbone", "source", "note", "assignment", "run_by", "links"} <= set(frame.columns)
    assert {setting.name for setting in paper_table()} <= set(frame["setting"])


def test_rows_without_pandas_are_those_of_the_frame() -> None:
    for row, (_, framed) in zip(ledger_rows(), load_reported().iterrows(), strict=True):
        assert {key: value for key, value in row.items() if value is not None} == framed.dropna().to_dict()


def test_a_published_name_by_either_name_and_the_nearest_of_an_unknown_one() -> None:
    names = ("mbs", "MBS", "lwf_mc", "finetune", "ssul-m", "mib+nest", "ewf over mib", "ewf over plop")
    found = [published_name(name) for name in names]
    assert found == ["MBS", "MBS", "LwF-MC", "FT", "SSUL-M", "MiB+NeST", "EWF+MiB", "EWF"]
    assert find_published_name("ewf over mib", "ade") == "EWF"
    assert find_published_name("ewf over plop", "ade") is find_published_name("ewf over lwf") is None
    with pytest.raises(UsageError, match=r"'mbss'.*'MBS' or 'MiB'"):
        published_name("mbss")
    with pytest.raises(UsageError, match=r"Known: .*MBS.*PLOP"):
        published_name("§§")


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
    assert {row["method"] for row in reported_rows("overlapped-15-1", "ewf over mib")} == {"EWF+MiB"}
    assert {row["method"] for row in reported_rows("overlapped-15-1", "ewf over plop")} == {"EWF"}
    assert {row["method"] for row in reported_rows("overlapped-100-10", "ewf over mib")} == {"EWF"}
    for nobodys in ("ewf over lwf", "plop over mine", "ssul over m", "mi over b", "plop+mine"):
        assert reported_rows("overlapped-15-1", nobodys) == []
    assert reported_rows("overlapped-19-1", "ewf over mib") == [] != reported_rows("overlapped-19-1", "ewf over plop")
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
    "document": "mib20",
    "place": "Table 1",
    "run_by": "plop21",
}


@pytest.fixture
def one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(ledger, "_FOLDER", tmp_path)
    yield tmp_path / "voc-overlapped.yaml"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metod": "X"}, ["unknown key 'metod'", "'method'"]),
        ({"place": None}, ["place is None"]),
        ({"place": " "}, ["place is ' '"]),
        ({"kind": "own"}, ["unknown key 'kind'"]),
        ({"document": "mib2"}, ["document is 'mib2'", "'mib20'"]),
        ({"run_by": "plop"}, ["run_by is 'plop'", "'plop21'"]),
        ({"run_by": None, "run_by_inferred": True}, ["run_by_inferred is true", "run_by is null"]),
        ({"also": [{"document": "mip20", "place": "Table 1"}]}, ["also[0].document is 'mip20'", "'mib20'"]),
        ({"also": [{"document": "mib20", "place": "Table 1", "gives": ["al"]}]}, ["also[0].gives", "'al'"]),
        ({"also": [{"document": "mib20", "place": "Table 1"}]}, ["also names a place twice, or that of the row"]),
        ({"also": [{"document": "plop21", "place": "Table 2"}] * 2}, ["also names a place twice"]),
        ({"old": "70"}, ["old is '70'"]),
        ({"old": 101.0}, ["old is 101.0"]),
        ({"new": True}, ["new is True"]),
        ({"all": [1.0]}, ["all is [1.0]"]),
        ({"old": None, "new": None, "all": None}, ["none of old, new and all"]),
        ({"also": [{"document": "mib20", "place": "Table 1", "prints": {"al": 1.0}}]}, ["prints has 'al'", "'all'"]),
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
