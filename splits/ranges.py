"""Ranges of numbers, declared with the field that has them: ``rate: Annotated[float, Range(above=0)] = 0.1``.

``strict_fields.py`` checks them in all that it reads: recipes, ``--set``, and the options of methods. NaN and infinity
are outside of every range, and of every field without one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Limit a number: ``least`` and ``most`` belong to the range, ``above`` and ``below`` do not; None is no limit."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, number: float) -> bool:
        """Return whether a number is in the range."""
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"from {self.least:.12g} to {self.most:.12g}"
        limits = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        words = " and ".join(f"{word} {limit:.12g}" for word, limit in limits.items() if limit is not None)
        return f"of {words}" if words.startswith("at") else words
