"""The likely reading of a row: its own arithmetic first, then what the rest of its table keeps to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from cispbench.results.conventions import conventions, judge, table_of
from cispbench.results.ledger import ledger_rows, readings

# Rows of overlapped-15-1 by the readings that fit them.
WITHOUT, BOTH, OLD_WITHOUT = (37.9, 5.0, 29.7), (65.12, 21.11, 54.64), (79.6, 59.6, 75.6)
WITHOUT_OR_BOTH, ANY, NONE, MISSING = (8.75, 8.0, 8.56), (80.0, 80.0, 80.0), (79.6, 59.6, 90.0), (None, 1.0, 2.0)


def row(
    numbers: tuple[float | None, ...], kind: str = "reported", method: str = "M", source: str = "S"
) -> dict[str, Any]:
    old, new, total = numbers
    where = {"setting": "overlapped-15-1", "kind": kind, "method": method, "source": source}
    return {**where, "old": old, "new": new, "all": total}


def likely(*rows: dict[str, Any]) -> list[tuple[str | None, bool]]:
    return [(verdict.likely, verdict.inferred) for verdict in judge(rows)]


def test_the_rows_of_this_test_fit_what_they_are_called() -> None:
    fitting = [readings(row(numbers)) for numbers in (WITHOUT, BOTH, OLD_WITHOUT, WITHOUT_OR_BOTH, ANY, NONE, MISSING)]
    assert fitting == [
        ("without",), ("both",), ("old-without",), ("without", "both"), ("without", "both", "old-without"), (), ()
    ]  # fmt: skip


def test_one_decisive_row_decides_for_the_ambiguous_ones_of_its_table() -> None:
    assert likely(row(WITHOUT_OR_BOTH), row(BOTH), row(ANY)) == [("both", True), ("both", False), ("both", True)]
    assert likely(row(WITHOUT_OR_BOTH), row(ANY), row(ANY)) == [(None, False)] * 3


def test_arithmetic_comes_before_the_table() -> None:
    assert likely(row(BOTH), row(BOTH), row(BOTH), row(WITHOUT))[3] == ("without", False)
    # The table says what the ambiguous row cannot be.
    assert likely(row(OLD_WITHOUT), row(OLD_WITHOUT), row(WITHOUT_OR_BOTH))[2] == (None, False)


def test_a_row_that_fits_none_is_likely_a_slip_of_its_tables_reading_and_counts_against_it() -> None:
    assert likely(row(BOTH), row(BOTH), row(NONE))[2] == ("both", True)
    assert likely(row(BOTH), row(NONE))[1] == (None, False)  # one of two is no majority
    assert likely(row(BOTH), row(MISSING))[1] == (None, False)
    assert conventions([row(BOTH), row(MISSING)]) == {("S", ""): "both"}


def test_sources_and_the_methods_that_they_copy_keep_to_themselves() -> None:
    rows = [row(BOTH), row(WITHOUT_OR_BOTH, source="T"), row(WITHOUT_OR_BOTH, kind="excerpted")]
    rows += [row(WITHOUT_OR_BOTH, kind="reproduced", method="N"), row(WITHOUT, kind="excerpted", method="N")]
    rows += [row(WITHOUT_OR_BOTH, kind="excerpted", method="N")]
    assert [name for name, _ in likely(*rows)] == ["both", None, None, "both", "without", "without"]


@pytest.mark.parametrize(
    ("source", "reading", "fits", "rows"),
    [
        ("fcdl94/MiB:voc-tab.png", "without", 54, 54),
        ("fcdl94/MiB:ade-tab.png", "without", 16, 18),
        ("arthurdouillard/CVPR2021_PLOP", "both", 8, 9),
        ("HieuPhan33/REMINDER", "both", 29, 30),
        ("QIU023/SATS", "both", 27, 28),
    ],
)
def test_papers_keep_the_conventions_known_of_them(source: str, reading: str, fits: int, rows: int) -> None:
    own = own_runs(source)
    assert list(conventions(own).values()) == [reading]
    complete = [verdict.readings for verdict in judge(own) if verdict.label != "incomplete"]
    assert (sum(reading in names for names in complete), len(complete)) == (fits, rows)


def own_runs(source: str) -> list[dict[str, Any]]:
    return [row for row in ledger_rows() if row["source"].startswith(source) and row["kind"] != "excerpted"]


def test_every_row_of_the_two_papers_is_likely_read_as_its_paper_counts() -> None:
    rows = ledger_rows()
    found = Counter(
        (row["source"].partition("/")[0], verdict.likely)
        for row, verdict in zip(rows, judge(rows), strict=True)
        if row["source"].startswith(("fcdl94/MiB:", "arthurdouillard/CVPR2021_PLOP:"))
    )
    assert found == {("fcdl94", "without"): 72, ("arthurdouillard", "both"): 9}


def test_verdicts_over_the_whole_ledger() -> None:
    rows = ledger_rows()
    verdicts = judge(rows)
    assert Counter(verdict.likely for verdict in verdicts if not verdict.inferred) == {
        "both": 229, "without": 60, "old-without": 29, None: 143 + 176
    }  # fmt: skip
    assert Counter(verdict.likely for verdict in verdicts if verdict.inferred) == {
        "both": 130, "without": 65, "old-without": 1
    }  # fmt: skip
    assert sum(verdict.ambiguous for verdict in verdicts) == 312
    assert all(not verdict.inferred or verdict.ambiguous or verdict.label == "inconsistent" for verdict in verdicts)
    assert len({table_of(row) for row in rows}) > 100
