"""Rows that print one number twice are found; rows that only look alike are not."""

from __future__ import annotations

from typing import Any

import pytest

from cispbench.results.duplicates import adds_nothing, duplicates
from cispbench.results.ledger import ledger_rows

Numbers = tuple[float | None, float | None, float | None]
FULL: Numbers = (77.31, 36.59, 67.61)


def row(numbers: Numbers, document: str = "dkd22", run_by: str | None = "SSUL authors", **other: Any) -> dict[str, Any]:
    where = {"setting": "overlapped-15-1", "method": "SSUL", "backbone": "ResNet-101 DeepLabV3"}
    return {
        **where,
        **dict(zip(("old", "new", "all"), numbers, strict=True)),
        "document": document,
        "run_by": run_by,
        **other,
    }


def test_the_ledger_holds_no_number_twice() -> None:
    assert duplicates(ledger_rows()) == []


@pytest.mark.parametrize(
    ("again", "document", "run_by"),
    [
        (FULL, "select26", "SSUL authors"),
        ((77.3, 36.6, 67.6), "select26", "SSUL authors"),  # rounded
        ((77.3, 36.5, 67.6), "select26", "SSUL authors"),  # cut
        ((77.3, 36.6, 67.7), "select26", "SSUL authors"),  # a slip in one of three
        ((77.3, 36.6, 67.5), "select26", None),
        ((77.3, 36.6, 67.6), "select26", None),  # who ran it is not said
        ((None, None, 67.61), "ssul21", "SSUL authors"),
        ((77.3, 36.6, 67.6), "ssul21", None),  # an older document than the other row's, not than who ran it
        (FULL, "dkd22", "SSUL authors"),
    ],
)
def test_a_repetition_is_found(again: Numbers, document: str, run_by: str | None) -> None:
    first, second = row(FULL), row(again, document, run_by)
    assert adds_nothing(second, first)
    assert duplicates([first, row(FULL, setting="overlapped-15-5"), second]) == [(first, second)]


@pytest.mark.parametrize(
    ("again", "document", "run_by"),
    [
        ((77.3, 36.6, 67.6), "select26", "SELECT authors"),  # run by others
        ((77.3, 36.8, 67.7), "select26", "SSUL authors"),  # two of three differ
        ((77.3, 36.6, 67.8), "select26", "SSUL authors"),  # more than a last digit
        ((None, None, 67.7), "select26", "SSUL authors"),
        ((77.3, 36.6, 67.6), "dkd22", "SSUL authors"),  # a second number of one document
        ((77.3, 36.6, 67.6), "mib20", None),  # printed before it was run
        ((77.3, 36.6, None), "select26", "SSUL authors"),
    ],
)
def test_what_only_looks_alike_is_left(again: Numbers, document: str, run_by: str | None) -> None:
    assert duplicates([row(FULL), row(again, document, run_by)]) == []


@pytest.mark.parametrize("name", ["setting", "method", "backbone"])
def test_rows_of_another_setting_method_or_network_are_others(name: str) -> None:
    assert duplicates([row(FULL), row(FULL, "select26", **{name: "another"})]) == []


def test_fewer_digits_never_repeat_more() -> None:
    precise, rounded = row((None, None, 67.61), "ssul21"), row((77.3, 36.6, 67.6), "select26")
    assert not adds_nothing(precise, rounded) and not adds_nothing(rounded, precise)
