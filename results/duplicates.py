"""Find rows of the ledger that print one number twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from cispbench.results.documents import documents

NUMBERS = ("old", "new", "all")
Row = Mapping[str, Any]


def duplicates(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return every pair of rows that print the same number, see ``same_number``."""
    alike: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        alike[row["setting"], row["method"], row["backbone"]].append(row)
    pairs = ((first, second) for group in alike.values() for n, first in enumerate(group) for second in group[n + 1 :])
    return [pair for pair in pairs if same_number(*pair)]


def same_number(first: Row, second: Row) -> bool:
    """Say whether two rows of one method, setting and network are one result that is printed twice.

    What both print must agree, ``all`` among it. Where the same people ran both, one of three numbers may be off by one
    in the last digit (a slip in copying). Rows of one document are one number only if they are equal: a document that
    prints two numbers means two. Rows that are known to be run by different people never are, nor can a document have
    taken a number from a later one.
    """
    runners = {first["run_by"], second["run_by"]}
    both = [name for name in NUMBERS if first[name] is not None and second[name] is not None]
    if "all" not in both or len(runners - {None}) > 1 or _from_a_later_one(first, second):
        return False
    if first["document"] == second["document"]:
        return all(first[name] == second[name] for name in NUMBERS)
    differing = [name for name in both if not agree(first[name], second[name])]
    slips = 1 if len(both) == len(NUMBERS) and len(runners) == 1 else 0
    return len(differing) <= slips and all(agree(first[name], second[name], slip=1) for name in differing)


def _from_a_later_one(first: Row, second: Row) -> bool:
    """Say whether one row, whose runner is not known, stands in an older document than the other, whose runner is."""
    repeats, source = (first, second) if first["run_by"] is None else (second, first)
    if repeats["run_by"] is not None or source["run_by"] is None:
        return False
    years = [documents()[row["document"]].year for row in (repeats, source)]
    return years[0] is not None and years[1] is not None and years[0] < years[1]


def agree(first: float, second: float, slip: int = 0) -> bool:
    """Say whether one number is the other, or the other rounded or cut to fewer digits; up to ``slip`` last digits off.

    >>> agree(70.08, 70.1), agree(70.08, 70.0), agree(70.08, 70.2), agree(70.1, 70.2), agree(70.1, 70.2, slip=1)
    (True, True, False, False, True)
    """
    more, fewer = sorted((Decimal(repr(float(first))), Decimal(repr(float(second)))), key=_exponent)
    unit = Decimal(1).scaleb(_exponent(fewer))
    apart = more - fewer
    if _exponent(more) == _exponent(fewer):
        return abs(apart) <= slip * unit
    return -unit / 2 - slip * unit <= apart < unit + slip * unit


def _exponent(number: Decimal) -> int:
    return min(-1, int(number.as_tuple().exponent))
