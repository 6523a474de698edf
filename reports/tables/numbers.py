"""Numbers as tables and JSON show them, and which numbers of a column are the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

LOWER_IS_BETTER = ("forgetting", "intransigence")


def number_text(value: float, decimals: int) -> str:
    """Return a number as text: a dash for NaN, never a negative zero.

    >>> number_text(-0.001, 2), number_text(77.195, 1), number_text(float("nan"), 2)
    ('0.00', '77.2', '-')
    """
    return "-" if math.isnan(value) else f"{round(value, decimals) + 0.0:.{decimals}f}"


def mean_text(mean: float, std: float, decimals: int) -> str:
    """Return ``mean ± standard deviation``, the mean alone where the deviation is NaN."""
    return number_text(mean, decimals) + ("" if math.isnan(std) else f" ± {number_text(std, decimals)}")


def signed(value: float, decimals: int) -> str:
    """Return a difference as text with its sign; 0 has none."""
    text = number_text(value, decimals)
    return text if text.startswith("-") or not float(text) else f"+{text}"


def json_number(value: float) -> float | None:
    """Return a number as JSON holds it: None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def ranks(values: Sequence[float | None], decimals: int, lower: bool = False) -> list[int]:
    """Return 1 for the best value, 2 for the second best, 0 for all others.

    Values are compared as they are shown: two that look equal share a rank. None or NaN stands for a row without a
    number, or a row that is not ranked. A single number gets no rank, as there is nothing to compare it with.

    >>> ranks([70.001, 60.0, None, 70.004, 50.0], decimals=2)
    [1, 2, 0, 1, 0]
    """
    rounded = [math.nan if value is None else round(value, decimals) for value in values]
    known = [value for value in rounded if not math.isnan(value)]
    if len(known) < 2:
        return [0] * len(rounded)
    best = sorted(set(known), reverse=not lower)[:2]
    return [best.index(value) + 1 if value in best else 0 for value in rounded]
