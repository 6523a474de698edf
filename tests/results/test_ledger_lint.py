"""The lint of published rows: which means their numbers can be, by arithmetic alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cispbench.results.ledger import LABELS, READINGS, arithmetic, ledger_rows, lint_row, load_reported, readings
from cispbench.splits.settings import paper_table, parse_setting


def labels(source: str) -> Counter[str]:
    frame = load_reported()
    rows = frame[frame["source"].str.contains(source, regex=False)]
    return Counter(lint_row(row) for _, row in rows.iterrows())


def test_the_papers_use_the_conventions_known_of_them() -> None:
    assert labels("voc-tab.png") == {"without": 54}
    assert labels("ade-tab.png") == {"without": 16, "inconsistent": 2}
    # ILT on 15-1 prints three numbers so close that both readings fit; PLOP on 15-5 prints 70.09 where they give 70.01.
    assert labels("images/plop_voc.png") == {"both": 7, "without": 1, "inconsistent": 1}
    incrementer = [row for row in load_reported().to_dict("records") if row["method"] == "Incrementer"]
    voc = Counter(lint_row(row) for row in incrementer if row["dataset"] == "voc")
    assert voc == {"old-without": 6, "incomplete": 3}


def test_lint_over_the_whole_ledger() -> None:
    found = Counter(lint_row(row) for row in load_reported().to_dict("records"))
    assert found == {"without": 251, "both": 257, "old-without": 28, "inconsistent": 25, "incomplete": 122}


def test_every_row_has_one_label_and_the_readings_that_go_with_it() -> None:
    rows = ledger_rows()
    for row in rows:
        label, fitting = lint_row(row), readings(row)
        assert label in LABELS
        assert fitting == tuple(name for name in READINGS if name in fitting)  # their order, none twice
        assert (fitting[:1] == (label,)) == (label in READINGS)
        assert (label == "incomplete") == (None in (row["old"], row["new"], row["all"]))
    assert sum(len(readings(row)) > 1 for row in rows) == 263
    assert Counter(readings(row) for row in rows if len(readings(row)) == 1) == {
        ("both",): 195, ("without",): 50, ("old-without",): 28
    }  # fmt: skip


def test_own_rows_of_the_two_papers_that_set_the_conventions() -> None:
    mib = [row for row in ledger_rows() if row["method"] == "MiB" and row["document"] == "mib20"]
    assert len(mib) == 9
    assert {lint_row(row) for row in mib} == {"without"}
    plop = [row for row in ledger_rows() if row["method"] == "PLOP" and row["document"] == "plop21"]
    assert [readings(row) for row in plop] == [("both",), (), ("both",)]
    slip = arithmetic(plop[1])
    assert slip is not None
    # 16 x 75.73 and 5 x 51.71 make 70.01; the paper prints 70.09, and rounding explains 0.01 of the difference.
    assert slip.both == pytest.approx((16 * 75.73 + 5 * 51.71) / 21)
    assert float(slip.gaps["both"]) == pytest.approx(70.09 - slip.both - 0.01)
    assert min(slip.gaps, key=slip.gaps.__getitem__) == "both"


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
    row = {"setting": "overlapped-15-1", "old": 1.0, "new": 2.0}
    assert (lint_row(row), readings(row), arithmetic(row)) == ("incomplete", (), None)


@pytest.mark.parametrize(
    ("old", "new", "total", "fitting"),
    [
        (37.9, 5.0, 29.7, ("without",)),  # neither 29.675, both 30.067, background 30.2
        (65.12, 21.11, 54.64, ("both",)),  # neither 54.118, both 54.641
        (79.6, 59.6, 75.6, ("old-without",)),  # neither 74.6, both 74.838
        (8.75, 8.0, 8.56, ("without", "both")),  # neither 8.5625, both 8.571
        (79.6, 59.6, 75.1, ("old-without",)),  # background 85.1
        (80.0, 80.0, 80.0, ("without", "both", "old-without")),
        (79.6, 59.6, 90.0, ()),
    ],
)
def test_all_readings_by_hand(old: float, new: float, total: float, fitting: tuple[str, ...]) -> None:
    assert readings({"setting": "overlapped-15-1", "old": old, "new": new, "all": total}) == fitting


def test_the_arithmetic_by_hand() -> None:
    found = arithmetic({"setting": "overlapped-15-1", "old": 79.6, "new": 59.6, "all": 90.0})
    assert found is not None
    assert (found.without, found.both) == pytest.approx((74.6, (16 * 79.6 + 5 * 59.6) / 21))
    assert found.background == pytest.approx(21 * 90.0 - 15 * 79.6 - 5 * 59.6)
    gaps = {name: float(gap) for name, gap in found.gaps.items()}
    # Every printed digit is off by 0.05 at most, and so is each mean; for the background they add up over 21 and 20.
    expected = {"without": 90 - 74.6 - 0.1, "both": 90 - found.both - 0.1}
    assert gaps == pytest.approx({**expected, "old-without": (found.background - 100 - 0.05 * 41) / 21})


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
    assert convention in readings(row)


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
