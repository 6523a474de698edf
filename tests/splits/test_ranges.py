"""Ranges of numbers: what they hold, what an error says, and that the strict reader looks at them everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from cispbench.splits.errors import RecipeError
from cispbench.splits.ranges import Range
from cispbench.splits.strict_fields import check_ranges, read_fields


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "words"),
    [
        ({"least": 0, "most": 1}, (0, 0.5, 1), (-1e-9, 1.1, 1e308), "from 0 to 1"),
        ({"above": 0}, (1e-300, 1e308), (0, -1), "above 0"),
        ({"least": 0, "below": 1}, (0, 0.999), (1, -1), "of at least 0 and below 1"),
        ({"above": 0, "most": 1e6}, (1e6, 1), (0, 1e6 + 1), "above 0 and at most 1000000"),
        ({"most": -2}, (-2, -3), (-1,), "of at most -2"),
    ],
)
def test_a_range_holds_its_numbers_and_says_which(limits: Any, inside: Any, outside: Any, words: str) -> None:
    limit = Range(**limits)
    assert all(map(limit.holds, inside)) and not any(map(limit.holds, outside))
    assert str(limit) == words


@dataclass(frozen=True)
class Options:
    rate: Annotated[float, Range(above=0, most=10)] = 1.0
    side: Annotated[int, Range(least=2)] | None = None
    scales: tuple[Annotated[int, Range(least=1)], ...] = (1,)
    named: dict[str, Annotated[float, Range(below=0)]] | None = None
    free: Any = None

    def __post_init__(self) -> None:
        check_ranges(self, RecipeError)


GOOD = {"rate": 10, "side": 2, "scales": [1, 5], "named": {"a": -0.5}, "free": {"b": [1.5, "x"]}}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rate": 0}, "rate is 0, not a number above 0 and at most 10."),
        ({"rate": 11}, "rate is 11, not a number above 0 and at most 10."),
        ({"rate": float("nan")}, "rate is nan, not a finite number."),
        ({"rate": "1"}, "rate is '1', not a number."),
        ({"side": 1}, "side is 1, not a whole number of at least 2 or null."),
        ({"side": 2.5}, "side is 2.5, not a whole number of at least 2 or null."),
        ({"scales": [1, 0]}, "scales[1] is 0, not a whole number of at least 1."),
        ({"named": {"a": 0}}, "named.a is 0, not a number below 0."),
        ({"free": {"b": [1, float("inf")]}}, "free is {'b': [1, inf]}, not a value without NaN and infinity."),
    ],
)
def test_the_strict_reader_refuses_what_is_outside(wrong: dict[str, Any], says: str) -> None:
    assert read_fields(Options, GOOD, "here").rate == 10.0
    with pytest.raises(RecipeError) as caught:
        read_fields(Options, GOOD | wrong, "here", RecipeError)
    assert str(caught.value) == f"here: {says}"


def test_an_object_that_python_code_builds_is_checked_too() -> None:
    with pytest.raises(RecipeError, match=r"^rate is -1, not a number above 0 and at most 10. side is 1, not"):
        Options(rate=-1, side=1)
