"""The leaderboard as data: boards, one for each data set and scenario, with an entry for each row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cispbench.reports.leaderboard.status import INCONSISTENT, Standing
from cispbench.reports.tables.numbers import ranks
from cispbench.reports.tables.runs import SCORES, Group
from cispbench.results.protocols import Protocol
from cispbench.results.published_methods import MethodFacts

DECIMALS = 2


class Badge(NamedTuple):
    """What makes a comparison with a row unfair, in few words and in a sentence."""

    name: str
    why: str


@dataclass(frozen=True)
class Number:
    """A number as shown, its value in percent, and its standing; "-" and NaN where there is none."""

    text: str
    value: float
    standing: Standing


@dataclass(frozen=True)
class SettingNumbers:
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
    its numbers compete for the best (not: upper bounds, and runs that nobody has repeated here).
    """

    method: str
    remark: str
    backbone: str
    kind: str
    facts: MethodFacts
    badges: tuple[Badge, ...]
    ranked: bool
    by_setting: Mapping[str, SettingNumbers]

    def value(self, setting: str, score: int, competing: bool = False) -> float:
        """Return a number; NaN where there is none, or where ``competing`` is asked for and it is not ranked."""
        if setting not in self.by_setting or (competing and not self.ranked):
            return math.nan
        number = self.by_setting[setting].numbers[score]
        return math.nan if competing and number.standing.status == INCONSISTENT else number.value


@dataclass(frozen=True)
class Board:
    """What may stand in one table: a data set and scenario, of one kind of data and profile; entries the best first."""

    group: Group
    scenario: str
    settings: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def main(self) -> str:
        """The setting with most numbers of all classes, by which entries are ordered; the first of equals."""
        total = SCORES.index("all")
        return max(
            self.settings,
            key=lambda setting: sum(not math.isnan(entry.value(setting, total)) for entry in self.entries),
        )

    def ranks(self, setting: str, score: int) -> list[int]:
        """Return 1 for the best entry, 2 for the second, 0 for all others, in one column."""
        return ranks([entry.value(setting, score, competing=True) for entry in self.entries], DECIMALS)


@dataclass(frozen=True)
class Leaderboard:
    """All boards of a store and the ledger under a protocol: those comparable with papers first."""

    protocol: Protocol
    boards: tuple[Board, ...]
