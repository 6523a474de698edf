"""Find rows of the ledger that print one number twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from cispbench.results.documents import documents
from cispbench.results.ledger_row import NUMBERS

Row = Mapping[str, Any]


def duplicates(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return every pair of rows that print the same number, see ``same_number``."""
    alike: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        alike[row["setting"], row["method"], row["backbone"]].append(row)
    pairs = ((first, second) for group in alike.values() for n, first in enumerate(group) for second in group[n + 1 :])
    return [pair for pair in pairs if same_number(*pair)]


def same_number(first: Row, second: Row) -> bool:
    """Say whether two rows of one method, setting and network are one number: one of them adds nothing to the other."""
    return adds_nothing(first, second) or adds_nothing(second, first)


def adds_nothing(row: Row, to: Row) -> bool:
    """Say whether a row repeats another: what it prints is there, with as many digits or more.

    Where both print all numbers, one may be off by one in the last digit (a slip in copying). Not a repetition: what is
    known to be run by others; a number that was printed before it was run; a second number of the same document.
    """
    runners, shown = {row["run_by"], to["run_by"]}, [name for name in NUMBERS if row[name] is not None]
    if "all" not in shown or any(to[name] is None for name in shown) or len(runners - {None}) > 1:
        return False
    if row["document"] == to["document"]:
        return all(row[name] == to[name] for name in shown)
    if before_it_was_run(row, to):
        return False
    differing = [name for name in shown if not shortened(row[name], to[name])]
    slips = 1 if len(shown) == len(NUMBERS) else 0
    return len(differing) <= slips and all(shortened(row[name], to[name], slip=1) for name in differing)


def shortened(number: float, of: float, slip: int = 0) -> bool:
    """Say whether a number is another, or the other rounded or cut to fewer digits; up to ``slip`` last digits off.

    >>> shortened(70.1, 70.08), shortened(70.0, 70.08), shortened(70.2, 70.08), shortened(70.08, 70.1)
    (True, True, False, False)
    """
    fewer, more = Decimal(repr(float(number))), Decimal(repr(float(of)))
    unit, apart = Decimal(1).scaleb(_exponent(fewer)), more - fewer
    if _exponent(fewer) == _exponent(more):
        return abs(apart) <= slip * unit
    return _exponent(fewer) > _exponent(more) and -unit / 2 - slip * unit <= apart < unit + slip * unit


def before_it_was_run(row: Row, to: Row) -> bool:
    """Say whether one row stands in a document older than the paper of those who ran the other."""
    return any(_older(first, second) for first, second in ((row, to), (to, row)) if first["run_by"] is None)


def _older(row: Row, to: Row) -> bool:
    known = documents()
    ran = next((entry.year for entry in known.values() if entry.runners == to["run_by"]), None)
    printed = known[row["document"]].year
    return ran is not None and printed is not None and printed < ran


def _exponent(number: Decimal) -> int:
    return min(-1, int(number.as_tuple().exponent))
