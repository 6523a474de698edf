"""The strict reader: what it accepts, and that it names every mistake at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from cispbench.splits.errors import RecipeError, StoreError, UsageError
from cispbench.splits.strict_fields import read_fields, read_part, refusal


@dataclass(frozen=True)
class Inner:
    rate: float
    count: int = 1

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise UsageError(f"rate is {self.rate}, not 0 or more.")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    sizes: tuple[int, ...] = (1, 2)
    word: Literal["a", "b", 1] = "a"
    either: str | int | Literal[True] | None = None
    several: tuple[float, ...] | None = None
    free: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)


UP_TO = "not a whole number up to 9223372036854775807."
GOOD: dict[str, Any] = {"name": "x", "inner": {"rate": 1}}


def test_values_are_read_and_defaults_stay() -> None:
    read = read_fields(Outer, GOOD | {"sizes": [3], "several": [1, 2.5], "word": 1, "free": {"a": [1]}}, "here")
    assert read == Outer("x", Inner(1.0), (3,), 1, None, (1.0, 2.5), {"a": [1]})
    assert isinstance(read.inner.rate, float)
    for value in ("x", 3, True, None):
        assert read_fields(Outer, GOOD | {"either": value}, "here").either == value


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": 3}, "name is 3, not text."),
        ({"name": None}, "name is None, not text."),
        ({"inner": 3}, "inner is 3, not a mapping."),
        ({"inner": {"rate": True}}, "inner.rate is True, not a number."),
        ({"inner": {"rate": float("nan")}}, "inner.rate is nan, not a finite number."),
        ({"inner": {"rate": 10**400}}, "not a finite number."),
        ({"inner": {"rate": -1}}, "inner: rate is -1.0, not 0 or more."),
        ({"inner": {}}, "inner.rate is missing."),
        ({"inner": {"rate": 1, "count": 10**30}}, f"inner.count is 1{'0' * 30}, {UP_TO}"),
        ({"inner": {"rate": 1, "count": 10**5000}}, f"inner.count is a number of thousands of digits, {UP_TO}"),
        ({"sizes": [1, -(10**30)]}, f"sizes[1] is -1{'0' * 30}, {UP_TO}"),
        ({"name": "caf\udce9"}, r"name is 'caf\udce9', not text that can be written as UTF-8."),
        ({"flags": {"\ud800": True}}, r"flags has the key '\ud800', which cannot be written as UTF-8."),
        (
            {"k" * 5000: 1},
            f"unknown key '{'k' * 77}...'. Known: either, flags, free, inner, name, several, sizes, word.",
        ),
        ({"inner": {"rate": 1, "cuont": 2}}, "unknown key 'inner.cuont'. Did you mean 'count'?"),
        ({"sizes": 3}, "sizes is 3, not a list."),
        ({"sizes": [1, True]}, "sizes[1] is True, not a whole number."),
        ({"word": "c"}, "word is 'c', not 'a' or 'b' or 1."),
        ({"word": "aa"}, "word is 'aa', not 'a' or 'b' or 1. Did you mean 'a'?"),
        ({"word": True}, "word is True, not 'a' or 'b' or 1."),
        ({"either": 1.5}, "either is 1.5, not text or a whole number or true or null."),
        ({"either": False}, "either is False, not text or a whole number or true or null."),
        ({"several": [1, "x"]}, "several[1] is 'x', not a number."),
        ({"several": "x"}, "several is 'x', not a list or null."),
        ({"free": {1: 2}}, "free is {1: 2}, not a mapping with words as keys."),
        ({"flags": {"a": 0}}, "flags.a is 0, not true or false."),
        ({"name": ["x" * 100]}, "..., not text."),
    ],
)
def test_a_mistake_is_named_with_place_field_and_value(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_fields(Outer, GOOD | changes, "here", RecipeError)
    assert str(caught.value).startswith("here: ")
    assert str(caught.value).endswith(says)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(StoreError) as caught:
        read_fields(Outer, {"inner": {"rate": "x"}, "sizes": 3, "nam": 1}, "here")
    assert str(caught.value).splitlines() == [
        "here:", "  inner.rate is 'x', not a number.", "  sizes is 3, not a list.",
        "  unknown key 'nam'. Did you mean 'name'?", "  name is missing.",
    ]  # fmt: skip
    assert str(refusal("here", ["No."] * 20, StoreError)).splitlines()[-1] == "  And 12 more."
    with pytest.raises(StoreError, match="here: the value is 3, not a mapping"):
        read_fields(Outer, 3, "here")


def test_a_part_is_read_without_what_is_missing_or_wrong() -> None:
    problems: list[str] = []
    assert read_part(Outer, {"inner": {"count": 2}, "sizes": [4]}, problems) == {"inner": {"count": 2}, "sizes": (4,)}
    assert problems == []
    assert read_part(Outer, {"inner": {"count": "2"}, "name": "x", "nam": 1}, problems, "top") == {"name": "x"}
    assert problems == [
        "top.inner.count is '2', not a whole number.", "unknown key 'top.nam'. Did you mean 'name'?",
    ]  # fmt: skip
