"""The ground truth behind the counts of a run: every step is tested on the same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from cispbench.splits.errors import StoreError


class GroundTruth:
    """The number of test pixels of each class, as the first confusion matrix tells it."""

    def __init__(self) -> None:
        self._first: tuple[Path, list[int]] | None = None

    def require(self, place: Path, confusion: Sequence[Sequence[int]]) -> None:
        """Raise StoreError, naming both files, if these counts (C, C) have other row sums than the first ones.

        ``place``: the file that holds the counts.
        """
        rows = [sum(row) for row in confusion]
        first, expected = self._first = self._first or (place, rows)
        if rows == expected:
            return
        pairs = enumerate(zip_longest(expected, rows))
        index, counts = next((index, pair) for index, pair in pairs if pair[0] != pair[1])
        raise StoreError(
            f"{first} and {place} disagree about the test images: they count {counts[0]} and {counts[1]} pixels of "
            f"class index {index}. "
            "The steps of a run are tested on the same images, so one of the two is wrong.",
            hint="Move the wrong file away, or both, and rerun: they are made again from the weights.",
        )
