"""The leaderboard as data: boards, one for each data set and scenario, with an entry for each row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cispbench.reports.leaderboard.badges import Badge
from cispbench.reports.leaderboard.status import INCONSISTENT, Standing
from cispbench.reports.tables.aggregate import SCORES
from cispbench.reports.tables.ranking import ranks
from cispbench.reports.tables.runs import Group, comparable
from cispbench.results.protocols import Protocol
from cispbench.results.published_methods import MethodFacts

DECIMALS = 2


@dataclass(frozen=True)
class Number:
    """A number as shown ("-" where there is none), its value in percent (nan), and how it stands."""

    text: str
    value: float
    standing: Standing


@dataclass(frozen=True)
class Place:
    """An entry's numbers on one setting, in the order of SCORES; ``provenance``: what is known of them, by label.

    ``inferred``: the source does not print setting and number together.
    """

    numbers: tuple[Number, ...]
    provenance: tuple[tuple[str, str], ...]
    inferred: bool = False


@dataclass(frozen=True)
class Entry:
    """A row: what was published by one source, or measured by one method and recipe, on any of the board's settings.

    ``kind``: measured, submitted, predictions, or the ledger's reported, excerpted and reproduced; ``ranked``: whether
    its numbers compete for best (not: upper bounds, and what nobody here has run).
    """

    method: str
    remark: str
    backbone: str
    kind: str
    facts: MethodFacts
    badges: tuple[Badge, ...]
    ranked: bool
    places: Mapping[str, Place]

    def value(self, setting: str, score: int, competing: bool = False) -> float:
        """Return a number, nan where there is none or, with ``competing``, where it does not compete."""
        if setting not in self.places or (competing and not self.ranked):
            return math.nan
        number = self.places[setting].numbers[score]
        return math.nan if competing and number.standing.status == INCONSISTENT else number.value


@dataclass(frozen=True)
class Board:
    """What may stand in one table: a data set and scenario, of one kind of data and profile; entries the best first."""

    group: Group
    scenario: str
    settings: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def comparable(self) -> bool:
        """Whether papers' numbers may stand beside its own."""
        return comparable(self.group.kind, self.group.profile)

    @property
    def main(self) -> str:
        """The setting with most numbers, by which entries are ordered."""
        return main_setting(self.settings, self.entries)

    def ranks(self, setting: str, score: int) -> list[int]:
        """Return 1 for the best entry, 2 for the second, 0 for all others, in one column."""
        return ranks([entry.value(setting, score, competing=True) for entry in self.entries], DECIMALS)


@dataclass(frozen=True)
class Leaderboard:
    """All boards of a store and the ledger under a protocol: those comparable with papers first."""

    protocol: Protocol
    boards: tuple[Board, ...]


def main_setting(settings: tuple[str, ...], entries: Iterable[Entry]) -> str:
    """Return the setting with most numbers of all classes, the first of equals."""
    counts = Counter(
        setting
        for entry in entries
        for setting, place in entry.places.items()
        if not math.isnan(place.numbers[SCORES.index("all")].value)
    )
    return max(settings, key=lambda setting: (counts[setting], -settings.index(setting)))
