"""The likely reading of a row: its own arithmetic first, then what the rest of its table keeps to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from cispbench.results.conventions import conventions, judge, table_of
from cispbench.results.documents import in_runners_document
from cispbench.results.ledger import ledger_rows, readings

# Rows of overlapped-15-1 by the readings that fit them.
WITHOUT, BOTH, OLD_WITHOUT = (37.9, 5.0, 29.7), (65.12, 21.11, 54.64), (79.6, 59.6, 75.6)
WITHOUT_OR_BOTH, ANY, NONE, MISSING = (8.75, 8.0, 8.56), (80.0, 80.0, 80.0), (79.6, 59.6, 90.0), (None, 1.0, 2.0)


def row(numbers: tuple[float | None, ...], ran_it: bool = True, method: str = "M", source: str = "S") -> dict[str, Any]:
    old, new, total = numbers
    run_by = "MiB authors" if ran_it else "PLOP authors"
    where = {"setting": "overlapped-15-1", "method": method, "source": source, "document": "mib20", "run_by": run_by}
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
    rows = [row(BOTH), row(WITHOUT_OR_BOTH, source="T"), row(WITHOUT_OR_BOTH, ran_it=False)]
    rows += [row(WITHOUT_OR_BOTH, method="N"), row(WITHOUT, ran_it=False, method="N")]
    rows += [row(WITHOUT_OR_BOTH, ran_it=False, method="N")]
    assert [name for name, _ in likely(*rows)] == ["both", None, None, "both", "without", "without"]


@pytest.mark.parametrize(
    ("source", "reading", "fits", "rows"),
    [
        ("MiB (arXiv 2002.00718), Table 1", "without", 54, 54),
        ("MiB (arXiv 2002.00718), Table 2", "without", 16, 18),
        ("PLOP (arXiv 2011.11390), Table 1", "both", 8, 9),
        ("REMINDER, Tables 1-2", "both", 23, 24),
        ("SATS, VOC table", "both", 27, 28),
    ],
)
def test_papers_keep_the_conventions_known_of_them(source: str, reading: str, fits: int, rows: int) -> None:
    own = own_runs(source)
    assert list(conventions(own).values()) == [reading]
    complete = [verdict.readings for verdict in judge(own) if verdict.label != "incomplete"]
    assert (sum(reading in names for names in complete), len(complete)) == (fits, rows)


def own_runs(source: str) -> list[dict[str, Any]]:
    rows = (row for row in ledger_rows() if row["source"].startswith(source))
    return [row for row in rows if in_runners_document(row["document"], row["run_by"])]


def test_every_row_of_the_two_papers_is_likely_read_as_its_paper_counts() -> None:
    rows = ledger_rows()
    found = Counter(
        (row["document"], verdict.likely)
        for row, verdict in zip(rows, judge(rows), strict=True)
        if row["document"] in ("mib20", "plop21")
    )
    assert found == {("mib20", "without"): 72, ("plop21", "both"): 9}


def test_verdicts_over_the_whole_ledger() -> None:
    rows = ledger_rows()
    verdicts = judge(rows)
    assert Counter(verdict.likely for verdict in verdicts if not verdict.inferred) == {
        "both": 195, "without": 50, "old-without": 28, None: 106 + 122
    }  # fmt: skip
    assert Counter(verdict.likely for verdict in verdicts if verdict.inferred) == {
        "both": 113, "without": 62, "old-without": 7
    }  # fmt: skip
    assert sum(verdict.ambiguous for verdict in verdicts) == 263
    assert all(not verdict.inferred or verdict.ambiguous or verdict.label == "inconsistent" for verdict in verdicts)
    assert len({table_of(row) for row in rows}) > 100
