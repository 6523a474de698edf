"""What `cispbench ledger` prints: every row counted once, ambiguity and inference shown, 100 columns at most."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from cispbench.reports.ledger import rows as module
from cispbench.reports.ledger.lint import lint_json, lint_text
from cispbench.reports.ledger.rows import Filter, select, show_json, show_text
from cispbench.reports.tables.published import kind_text
from cispbench.results.documents import KINDS
from cispbench.results.ledger import LABELS, ledger_rows, lint_row, readings, reported_rows
from cispbench.splits.errors import SettingError, UsageError


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that no row has to be wrapped for."""
    monkeypatch.setenv("COLUMNS", "100")


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
    assert rows["in total"]["rows"] == "683"
    assert rows["in total"]["ambiguous"] == str(sum(len(readings(row)) > 1 for row in ledger_rows()))
    decided, total = number(rows["in total"]["likely"]), 683 - expected["incomplete"]
    assert f"undecided for {total - decided} more" in rows["in total"]["meaning"]


@pytest.mark.parametrize("by", ["source", "method", "both"])
def test_every_row_is_counted_once_whatever_it_is_counted_by(by: str) -> None:
    rows = cells(lint_text(Filter(), by), "method" if by == "method" else "source  ")
    assert sum(number(row["rows"]) for row in rows) == 683
    for row in rows:
        assert sum(number(row[name]) for name in LABELS) == number(row["rows"])
    expected = Counter(lint_row(row) for row in ledger_rows())
    assert {name: sum(number(row[name]) for row in rows) for name in LABELS} == expected


def test_the_convention_of_a_source_is_marked() -> None:
    rows = {row["source"]: row for row in cells(lint_text(Filter()), "source  ")}
    assert rows["MiB, Table 1"]["without"] == "54*"
    assert [row["both"] for name, row in rows.items() if name.startswith("PLOP, Table 1")] == ["7*"]
    assert "*" not in "".join(rows["PRKR, Table 2"].values())  # what it ran itself leaves two readings
    assert "convention" not in lint_text(Filter(), "method")
    copied = cells(lint_text(Filter(source="CFSSeg", kind="not known"), "both"), "source  ")
    assert copied and not any("*" in "".join(row.values()) for row in copied)


def test_a_row_that_fits_none_is_listed_with_the_arithmetic_that_fails() -> None:
    text = lint_text(Filter(method="plop", source="PLOP (arXiv"))
    (row,) = cells(text, "setting")
    assert row == {
        "setting": "overlapped-15-5", "method": "PLOP", "old": "75.73", "new": "51.71", "all": "70.09",
        "without": "69.72", "both": "70.01", "bg IoU": "77.4", "off": "0.07", "likely": "both", "ref": "[1]",
    }  # fmt: skip
    assert "[1]  own. PLOP (arXiv 2011.11390), Table 1" in text
    assert len(cells(lint_text(Filter()), "setting")) == 25
    assert "Inconsistent rows" not in lint_text(Filter(method="mib", source="MiB (arXiv"))


def test_each_row_shows_all_readings_that_fit() -> None:
    text = lint_text(Filter(method="ilt", source="PLOP (arXiv"), each=True)
    assert [(row["fits"], row["likely"]) for row in cells(text, "setting")] == [
        ("both", "both"), ("both", "both"), ("without/both", "both?")
    ]  # fmt: skip


def test_the_lint_as_json() -> None:
    content = json.loads(lint_json(Filter()))
    assert (content["rows"], content["ambiguous"]) == (683, 263)
    assert content["counts"] == dict(Counter(lint_row(row) for row in ledger_rows()))
    assert sum(content["likely"].values()) + 106 == 683 - content["counts"]["incomplete"]
    for name in ("source", "method"):
        parts = content[f"by_{name}"]
        assert set(parts) == {row[name] for row in ledger_rows()}
        assert sum(part["rows"] for part in parts.values()) == 683
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
        "setting": "overlapped-15-1", "old": "-", "new": "-", "all": "80.6",
        "kind": "own", "network": "ViT-B/16 (Segmenter)", "reading": "incomplete", "ref": first["ref"],
    }  # fmt: skip
    source = text[text.index(f"\n{first['ref']} ") :]
    assert source.startswith(f"\n{first['ref']}  MBS on PapersWithCode, page. Run by MBS authors.")
    assert "Also: review of SELECT" in source
    for row in reported_rows("overlapped-15-1", "mbs"):
        printed = [text for text in rows if text["setting"] == "overlapped-15-1" and text["all"] == str(row["all"])]
        assert [text["kind"] for text in printed] == [kind_text(row)]


def test_inferred_assignments_and_readings_are_marked() -> None:
    rows = cells(show_text(Filter(method="mbs", dataset="ade")), "setting")
    assert [row["all"] for row in rows if row["setting"] == "overlapped-100-50"] == ["45.7?", "45.5", "43.7"]
    assert [row["all"] for row in rows if row["setting"] == "overlapped-100-10"] == ["44.5", "43.8", "42.3"]
    text = " ".join(show_text(Filter(method="mbs")).split())
    assert "A number with ?: its source does not print its setting" in text
    assert "Assignment of the setting: inferred (could be swapped with 50-50)." in text
    assert "Assignment of the setting: forced by metric name + README badge." in text
    assert "A number with ?" not in show_text(Filter(method="dkd"))
    assert [row["setting_inferred"] for row in json.loads(show_json(Filter(method="mbs")))].count(True) == 5
    voc = cells(show_text(Filter(method="mbs", setting="*-15-?")), "setting")
    found = {(row["setting"], row["all"]): row["reading"] for row in voc}
    assert found["overlapped-15-1", "78.0"] == "both?"
    # Two readings fit this row; what SELECT ran itself, and its text, say that all alone counts the background.
    assert found["overlapped-15-1", "79.0"] == "old-without?"
    assert found["disjoint-15-1", "74.1"] == "without"


def test_every_note_of_a_shown_row_is_printed() -> None:
    text = " ".join(show_text(Filter(method="mbs")).split())
    for row in ledger_rows():
        if row["method"] == "MBS" and row["note"]:
            assert " ".join(row["note"].split()).rstrip(".") in text


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        ({"method": "finetune"}, 11),
        ({"method": "FT", "dataset": "ade"}, 3),
        ({"dataset": "ade"}, 203),
        ({"kind": "re-run"}, 129),
        ({"setting": "overlapped-2-2"}, 12),
        ({"setting": "voc:overlapped-2-2-a"}, 12),
        ({"setting": "disjoint-1*"}, 137 + 12),
        ({"source": "mib (ARXIV"}, 72),
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
        ({"kind": "reruns"}, UsageError, "own, quoted, re-run, not known"),
        ({"kind": "reported"}, UsageError, "own, quoted, re-run, not known"),
        ({"kind": "excerpted"}, UsageError, "own, quoted, re-run, not known"),
        ({"kind": "reproduced"}, UsageError, "own, quoted, re-run, not known"),
        ({"source": "nowhere"}, UsageError, "'nowhere'"),
    ],
)
def test_a_word_that_no_row_knows_is_named(chosen: dict[str, str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        select(Filter(**chosen))
    with pytest.raises(UsageError, match="'source'"):
        lint_text(Filter(), by="sorce")


@pytest.mark.parametrize("by", ["source", "method", "both"])
def test_the_lint_fits_a_terminal(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert max(map(len, lint_text(Filter(), by, each=True).splitlines())) <= 100


@pytest.mark.parametrize("chosen", [Filter(), Filter(kind="own", dataset="ade"), *map(Filter, ["MBS", "MiB", "Joint"])])
def test_what_is_shown_fits_a_hundred_columns(chosen: Filter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert max(map(len, show_text(chosen).splitlines())) <= 100


def test_a_setting_without_a_method_is_everything_published_on_it() -> None:
    text = show_text(Filter(setting="overlapped-15-1"))
    rows, expected = cells(text, "method"), [row for row in ledger_rows() if row["setting"] == "overlapped-15-1"]
    assert text.startswith(f"overlapped-15-1: {len(expected)} published rows, ")

    def printed(row: dict[str, Any]) -> tuple[str, ...]:
        mark = "?" if (row["assignment"] or "").startswith("inferred") else ""
        numbers = ["-" if row[name] is None else f"{row[name]}{mark}" for name in ("old", "new", "all")]
        return row["method"], *numbers, kind_text(row), row["backbone"]

    shown = [tuple(row[name] for name in ("method", "old", "new", "all", "kind", "network")) for row in rows]
    assert Counter(shown) == Counter(map(printed, expected)) and len(shown) > 60
    order = [
        (list(KINDS).index(kind.rstrip("?")), network, -float(total.rstrip("?"))) for *_, total, kind, network in shown
    ]
    assert order == sorted(order)  # by kind and network, there the best first
    assert all(re.fullmatch(r"\[\d+\]", row["ref"]) and f"\n{row['ref']} " in text for row in rows)
    for kind, meaning in KINDS.items():
        assert f"{kind}: {meaning}" in " ".join(text.split())


def test_several_settings_have_a_table_each() -> None:
    text = show_text(Filter(setting="overlapped-15-?", kind="own"))
    heads = [line.partition(":")[0] for line in text.splitlines() if "published row" in line]
    assert heads == ["overlapped-15-5", "overlapped-15-1"]
    with_method = show_text(Filter(method="mib", setting="overlapped-15-?", kind="own"))
    assert with_method.startswith("MiB: 2 published rows") and len(cells(with_method, "setting")) == 2


def test_a_number_that_stands_twice_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "twice" not in lint_text(Filter()) and json.loads(lint_json(Filter()))["duplicates"] == []
    rows = ledger_rows()
    again = next(row for row in rows if row["method"] == "MBS" and row["kind"] == "own")
    monkeypatch.setattr(module, "ledger_rows", lambda: [*rows, again | {"document": "select26", "source": "A copy"}])
    text = lint_text(Filter(method="mbs"))
    twice = cells(text[text.index("Printed twice") :], "setting")
    assert [(row["setting"], row["all"]) for row in twice] == [(again["setting"], str(again["all"]))] * 2
    assert "A copy" in text
    ((first, second),) = json.loads(lint_json(Filter()))["duplicates"]
    assert (first["document"], second["document"]) == (again["document"], "select26")
