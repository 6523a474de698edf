"""Which rows of a table's column are best and second: by what is shown, so that what looks equal ranks equal."""

from __future__ import annotations

import math
from collections.abc import Sequence

LOWER_IS_BETTER = ("forgetting", "intransigence")


def shown(value: float, decimals: int) -> str:
    """Return a number as it is shown, a dash where there is none; never a negative zero.

    >>> shown(-0.001, 2), shown(77.195, 1), shown(float("nan"), 2)
    ('0.00', '77.2', '-')
    """
    return "-" if math.isnan(value) else f"{round(value, decimals) + 0.0:.{decimals}f}"


def signed(value: float, decimals: int) -> str:
    """Return a difference as it is shown, with its sign; 0 has none."""
    text = shown(value, decimals)
    return text if text.startswith("-") or not float(text) else f"+{text}"


def ranks(values: Sequence[float | None], decimals: int, lower: bool = False) -> list[int]:
    """Return 1 for the best of the values as shown, 2 for the second best, 0 for all others; equal ones share a rank.

    None or nan stands for a row without a number or outside the competition. A single number is not the best of any.

    >>> ranks([70.001, 60.0, None, 70.004, 50.0], decimals=2)
    [1, 2, 0, 1, 0]
    """
    texts = [None if value is None or math.isnan(value) else shown(value, decimals) for value in values]
    if sum(text is not None for text in texts) < 2:
        return [0] * len(texts)
    order = sorted({float(text) for text in texts if text is not None}, reverse=not lower)
    places = {value: place for place, value in enumerate(order[:2], start=1)}
    return [0 if text is None else places.get(float(text), 0) for text in texts]
