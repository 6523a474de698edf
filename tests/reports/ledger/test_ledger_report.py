"""What `cispbench ledger` prints: every row counted once, ambiguity and inference shown, 110 columns at most."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from cispbench.reports.ledger.lint import lint_json, lint_text
from cispbench.reports.ledger.rows import Filter, select, show_json, show_text
from cispbench.results.ledger import LABELS, ledger_rows, lint_row, readings, reported_rows
from cispbench.splits.errors import SettingError, UsageError


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that no row has to be wrapped for."""
    monkeypatch.setenv("COLUMNS", "110")


def cells(text: str, header: str) -> list[dict[str, str]]:
    """Return the rows of the table whose header line starts with ``header``, cells by the name of their column."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(header))
    spans = [(match.start(), match.end()) for match in re.finditer("-+", lines[start + 1])]
    names = [lines[start][first:last].strip() for first, last in spans]
    rows = []
    for line in lines[start + 2 :]:
        if not line:
            break
        rows.append({name: line[first:last].strip() for name, (first, last) in zip(names, spans, strict=True)})
    return rows


def number(text: str) -> int:
    return int(text.rstrip("*") or 0)


def test_the_totals_are_those_of_the_lint_and_add_up() -> None:
    rows = {row["reading"]: row for row in cells(lint_text(Filter()), "reading ")}
    expected = Counter(lint_row(row) for row in ledger_rows())
    assert {name: number(rows[name]["rows"]) for name in LABELS} == expected
    assert rows["in total"]["rows"] == "833"
    assert rows["in total"]["ambiguous"] == str(sum(len(readings(row)) > 1 for row in ledger_rows()))
    decided, total = number(rows["in total"]["likely"]), 833 - expected["incomplete"]
    assert f"undecided for {total - decided} more" in rows["in total"]["meaning"]


@pytest.mark.parametrize("by", ["source", "method", "both"])
def test_every_row_is_counted_once_whatever_it_is_counted_by(by: str) -> None:
    rows = cells(lint_text(Filter(), by), "method" if by == "method" else "source")
    assert sum(number(row["rows"]) for row in rows) == 833
    for row in rows:
        assert sum(number(row[name]) for name in LABELS) == number(row["rows"])
    expected = Counter(lint_row(row) for row in ledger_rows())
    assert {name: sum(number(row[name]) for row in rows) for name in LABELS} == expected


def test_the_convention_of_a_source_is_marked() -> None:
    rows = {row["source"]: row for row in cells(lint_text(Filter()), "source")}
    assert rows["fcdl94/MiB:voc-tab.png"]["without"] == "54*"
    assert [row["both"] for name, row in rows.items() if name.startswith("arthurdouillard")] == ["7*"]
    assert "*" not in "".join(rows["SELECT, Table 8"].values())  # its own re-runs of MBS leave two readings
    assert "convention" not in lint_text(Filter(), "method")
    excerpts = cells(lint_text(Filter(source="CFSSeg", kind="excerpted"), "both"), "source")
    assert excerpts and not any("*" in "".join(row.values()) for row in excerpts)


def test_a_row_that_fits_none_is_listed_with_the_arithmetic_that_fails() -> None:
    text = lint_text(Filter(method="plop", source="CVPR2021_PLOP"))
    (row,) = cells(text, "setting")
    assert row == {
        "setting": "overlapped-15-5", "method": "PLOP", "old": "75.73", "new": "51.71", "all": "70.09",
        "without": "69.72", "both": "70.01", "background": "77.4", "off by": "0.07", "likely": "both?", "ref": "[1]",
    }  # fmt: skip
    assert "[1]  reported. arthurdouillard/CVPR2021_PLOP" in text
    assert len(cells(lint_text(Filter()), "setting")) == 27
    assert "Inconsistent rows" not in lint_text(Filter(method="mib", source="fcdl94/MiB:"))


def test_each_row_shows_all_readings_that_fit() -> None:
    text = lint_text(Filter(method="ilt", source="CVPR2021_PLOP"), each=True)
    assert [(row["fits"], row["likely"]) for row in cells(text, "setting")] == [
        ("both", "both"), ("both", "both"), ("without/both", "both?")
    ]  # fmt: skip


def test_the_lint_as_json() -> None:
    content = json.loads(lint_json(Filter()))
    assert (content["rows"], content["ambiguous"]) == (833, 312)
    assert content["counts"] == dict(Counter(lint_row(row) for row in ledger_rows()))
    assert sum(content["likely"].values()) + 143 == 833 - content["counts"]["incomplete"]
    for name in ("source", "method"):
        parts = content[f"by_{name}"]
        assert set(parts) == {row[name] for row in ledger_rows()}
        assert sum(part["rows"] for part in parts.values()) == 833
    assert [row["lint"] for row in content["each"]] == [lint_row(row) for row in ledger_rows()]


def test_show_prints_what_is_published_in_the_order_of_settings() -> None:
    text = show_text(Filter(method="mbs"))
    rows = cells(text, "setting")
    assert len(rows) == 34
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    assert settings.index("overlapped-19-1") < settings.index("overlapped-15-1") < settings.index("overlapped-100-10")
    assert len(settings) == len({row["setting"] for row in rows})  # a setting's rows stand together
    first = next(row for row in rows if row["setting"] == "overlapped-15-1")
    assert first == {
        "setting": "overlapped-15-1", "old": "-", "new": "-", "all": "80.6", "assigned": "direct",
        "kind": "reported", "backbone": "ViT-B/16 (Segmenter)", "reading": "incomplete", "ref": first["ref"],
    }  # fmt: skip
    source = text[text.index(f"\n{first['ref']} ") :]
    assert source.startswith(f"\n{first['ref']}  PapersWithCode page of MBS + ICLR review")
    for row in reported_rows("overlapped-15-1", "mbs"):
        printed = [text for text in rows if text["setting"] == "overlapped-15-1" and text["all"] == str(row["all"])]
        assert [text["kind"] for text in printed] == [row["kind"]]


def test_inferred_assignments_and_readings_are_marked() -> None:
    rows = cells(show_text(Filter(method="mbs", dataset="ade")), "setting")
    assert [row["assigned"] for row in rows if row["setting"] == "overlapped-100-50"] == ["inferred", "", ""]
    assert "could be swapped with 50-50" in show_text(Filter(method="mbs"))
    assert [row["setting_inferred"] for row in json.loads(show_json(Filter(method="mbs")))].count(True) == 5
    voc = cells(show_text(Filter(method="mbs", setting="*-15-?")), "setting")
    found = {(row["setting"], row["all"]): row["reading"] for row in voc}
    assert found["overlapped-15-1", "78.0"] == "both?"
    assert found["overlapped-15-1", "79.0"] == "without/old-without"
    assert found["disjoint-15-1", "74.1"] == "without"


def test_columns_that_would_be_empty_are_left_out() -> None:
    text = show_text(Filter(method="plop"))
    assert "assigned" not in text
    assert len(cells(text, "setting")) == sum(row["method"] == "PLOP" for row in ledger_rows())


def test_every_note_of_a_shown_row_is_printed() -> None:
    text = " ".join(show_text(Filter(method="mbs")).split())
    for row in ledger_rows():
        if row["method"] == "MBS" and row["note"]:
            assert " ".join(row["note"].split()).rstrip(".") in text


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        ({"method": "finetune"}, 12),
        ({"method": "FT", "dataset": "ade"}, 3),
        ({"dataset": "ade"}, 266),
        ({"kind": "reproduced"}, 49),
        ({"setting": "overlapped-2-2"}, 12),
        ({"setting": "voc:overlapped-2-2-a"}, 12),
        ({"setting": "disjoint-1*"}, 152 + 12),
        ({"source": "fcdl94/mib"}, 72),
        ({"method": "mbs", "setting": "disjoint-100-50"}, 0),
    ],
)
def test_filters(chosen: dict[str, Any], count: int) -> None:
    assert len(select(Filter(**chosen))) == count


def test_verdicts_do_not_depend_on_the_filter() -> None:
    whole = {json.dumps(entry.row, sort_keys=True): entry.verdict for entry in select(Filter())}
    for entry in select(Filter(method="joint", setting="overlapped-15-1")):
        assert whole[json.dumps(entry.row, sort_keys=True)] == entry.verdict


def test_nothing_published_is_said() -> None:
    chosen = Filter(method="mbs", setting="disjoint-100-50")
    assert show_text(chosen) == lint_text(chosen) == "The ledger holds no row of method mbs, setting disjoint-100-50."
    assert json.loads(show_json(chosen)) == []
    assert json.loads(lint_json(chosen))["rows"] == 0


@pytest.mark.parametrize(
    ("chosen", "error", "says"),
    [
        ({"method": "mbss"}, UsageError, "'MBS'"),
        ({"setting": "overlapped-15-7"}, SettingError, "15-7"),
        ({"setting": "overlaped-*"}, UsageError, "overlapped-"),
        ({"dataset": "vox"}, SettingError, "'voc'"),
        ({"kind": "reprted"}, UsageError, "'reported'"),
        ({"source": "nowhere"}, UsageError, "'nowhere'"),
    ],
)
def test_a_word_that_no_row_knows_is_named(chosen: dict[str, str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        select(Filter(**chosen))
    with pytest.raises(UsageError, match="'source'"):
        lint_text(Filter(), by="sorce")


@pytest.mark.parametrize("by", ["source", "method", "both"])
def test_the_lint_fits_a_terminal(by: str) -> None:
    assert max(map(len, lint_text(Filter(), by, each=True).splitlines())) <= 110


@pytest.mark.parametrize("method", ["MBS", "MiB", "Joint", "Incrementer", "LGKD+PLOP", "CoinSeg"])
def test_what_is_shown_fits_a_terminal(method: str) -> None:
    assert max(map(len, show_text(Filter(method=method)).splitlines())) <= 110
