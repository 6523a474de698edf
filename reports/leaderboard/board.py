"""The leaderboard of a store and the ledger: boards with their rows, and the standing of each of their numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cispbench.reports.leaderboard.background import measured_background, published_background
from cispbench.reports.leaderboard.badges import JOINT, Badge, measured_badges, published_badges
from cispbench.reports.leaderboard.provenance import Pairs, measured_provenance, published_provenance
from cispbench.reports.leaderboard.status import INCONSISTENT, NOTHING, Standing, Standings
from cispbench.reports.tables.cells import Cell, cells
from cispbench.reports.tables.extras import Extras, measured_extras, published_extras
from cispbench.reports.tables.numbers import mean_text, ranks
from cispbench.reports.tables.published import is_inferred, is_repeated_otherwise, verdicts
from cispbench.reports.tables.runs import SCORES, Group, setting_order
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.documents import KINDS, document_links
from cispbench.results.ledger import find_published_name, ledger_rows
from cispbench.results.protocols import Protocol, load_protocol
from cispbench.results.published_methods import UNKNOWN, MethodFacts, method_facts
from cispbench.results.store import Store
from cispbench.splits.datasets import SCENARIOS, datasets

DECIMALS = 2
NOTHING_MEASURED = "Nothing is measured in this store: all numbers are published ones."
HERE = "here"  # who ran what was measured
Row = Mapping[str, Any]  # a row of the ledger


@dataclass(frozen=True)
class Number:
    """A number as shown and its value in percent; "-" and NaN where there is none.

    ``kind``: measured, submitted, predictions, or the ledger's kind; ``provenance``: what is known, by label;
    ``source``: the text of the ledger, "" of the store, and ``links``: its addresses; ``background``: whether it counts
    it, None where not known; ``inferred``: the source does not print it with its setting; ``disputed``: other sources
    print another number; ``likely``: who ran it, and so its kind, is inferred; ``spread``: the standard deviation over
    seeds, NaN where there is none.
    """

    text: str
    value: float
    standing: Standing
    kind: str
    provenance: Pairs
    source: str = ""
    background: bool | None = None
    inferred: bool = False
    disputed: bool = False
    likely: bool = False
    spread: float = math.nan
    links: tuple[str, ...] = ()

    @property
    def kind_text(self) -> str:
        """The kind, with a question mark where it is inferred."""
        return f"{self.kind}?" if self.likely else self.kind

    @property
    def cited(self) -> str:
        """The source with its addresses, "" of the store."""
        return f"{self.source}: {' '.join(self.links)}" if self.links else self.source


Numbers = tuple[Number, ...]


@dataclass(frozen=True)
class Entry:
    """A row: the numbers of a method with a network that one person or group ran, on any of the board's settings.

    ``run_by``: who ran it, "" where not known; ``by_setting``: numbers in the order of SCORES, all of one run;
    ``extras``: its memory and supervision; ``others``: what is printed besides on a setting; ``ranked``: whether they
    compete for the best (not: upper bounds, and runs that nobody has repeated here).
    """

    method: str
    remark: str
    backbone: str
    run_by: str
    facts: MethodFacts
    extras: Extras
    badges: tuple[Badge, ...]
    ranked: bool
    by_setting: Mapping[str, Numbers]
    others: Mapping[str, tuple[Numbers, ...]]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its numbers, with a question mark where they are inferred."""
        return tuple(dict.fromkeys(number.kind_text for numbers in self.by_setting.values() for number in numbers))

    def number(self, setting: str, score: int, competing: bool = False) -> Number | None:
        """Return a number; None where there is none, or where ``competing`` is asked for and it is not ranked.

        What is inconsistent is not ranked, nor what may or may not count the background.
        """
        if setting not in self.by_setting or (competing and not self.ranked):
            return None
        found = self.by_setting[setting][score]
        apart = found.standing.status == INCONSISTENT or found.background is None
        return None if math.isnan(found.value) or (competing and apart) else found

    def value(self, setting: str, score: int) -> float:
        """Return the value of a number in percent; NaN where there is none."""
        found = self.number(setting, score)
        return math.nan if found is None else found.value


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
        """Return 1 for the best entry, 2 for the second, 0 for all others, in one column.

        Numbers with the background and numbers without it are ranked apart.
        """
        found = [entry.number(setting, score, competing=True) for entry in self.entries]
        by_background = [
            ranks([number.value if number and number.background is counted else None for number in found], DECIMALS)
            for counted in (True, False)
        ]
        return [max(places) for places in zip(*by_background, strict=True)]


@dataclass(frozen=True)
class Leaderboard:
    """All boards of a store and the ledger under a protocol: those comparable with papers first.

    ``notes``: what a reader of any of them must know of the store.
    """

    protocol: Protocol
    boards: tuple[Board, ...]
    notes: tuple[str, ...]


Boards = dict[tuple[Group, str], list[Entry]]


def load_leaderboard(store: Store, protocol: str = "strict") -> Leaderboard:
    """Return the leaderboard of a store, which may be empty, and of the whole ledger.

    Raises UsageError on an unknown protocol, StoreError on a record or ledger that cannot be read.
    """
    rules = load_protocol(protocol)
    measured = cells(load_runs(store, protocol))
    standings = Standings(measured)
    found: Boards = defaultdict(list)
    _add_published(found, standings)
    _add_measured(found, measured, standings, rules)
    boards = [_board(group, scenario, entries) for (group, scenario), entries in found.items()]
    listed = list(datasets({group.dataset for group, _ in found}))

    def order(board: Board) -> tuple[Any, ...]:
        kind, profile, dataset = board.group
        return not board.group.comparable, kind, profile, listed.index(dataset), SCENARIOS.index(board.scenario)

    notes = () if measured else (NOTHING_MEASURED,)
    return Leaderboard(rules, tuple(sorted(boards, key=order)), notes)


def _board(group: Group, scenario: str, entries: Sequence[Entry]) -> Board:
    settings = tuple(setting_order(setting for entry in entries for setting in entry.by_setting))
    board = Board(group, scenario, settings, tuple(entries))
    main, total = board.main, SCORES.index("all")

    def order(entry: Entry) -> tuple[Any, ...]:
        value = entry.value(main, total)
        number = (1, 0.0) if math.isnan(value) else (0, -value)  # NaN would break the sort
        return (*number, entry.method.lower(), entry.remark, entry.backbone, entry.run_by, *entry.by_setting)

    return replace(board, entries=tuple(sorted(entries, key=order)))


def _add_published(found: Boards, standings: Standings) -> None:
    grouped: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    row: Row
    for row in ledger_rows():
        # Two documents that do not say who ran a number need not mean the same run.
        who = (row["run_by"], "") if row["run_by"] else ("", row["document"])
        grouped[(row["dataset"], row["scenario"], row["method"], row["backbone"], *who)].append(row)
    for (dataset, scenario, method, backbone, run_by, _), members in grouped.items():
        known = method_facts().get(method, UNKNOWN)
        by_setting: dict[str, list[Row]] = defaultdict(list)
        for row in sorted(members, key=_preference):
            by_setting[row["setting"]].append(row)
        made = {
            setting: [_published_numbers(row, rows, standings, known) for row in rows]
            for setting, rows in by_setting.items()
        }
        badges = published_badges(dataset, backbone, {row["kind"] for row in members}, method)
        shown = {setting: numbers[0] for setting, numbers in made.items()}
        others = {setting: tuple(numbers[1:]) for setting, numbers in made.items() if numbers[1:]}
        extras = published_extras(known, dataset)
        entry = Entry(method, "", backbone, run_by, known, extras, badges, method != JOINT, shown, others)
        found[Group("full", "paper", dataset), scenario].append(entry)


def _preference(row: Row) -> tuple[int, int]:
    """Return by what the rows of a setting are ordered: the most complete first, and then the most direct."""
    return sum(row[name] is None for name in SCORES), list(KINDS).index(row["kind"])


def _published_numbers(row: Row, rows: Sequence[Row], standings: Standings, known: MethodFacts) -> Numbers:
    """Return the numbers of one of a setting's ``rows``; the others are named in their provenance."""
    verdict = verdicts()[tuple(row.values())]
    provenance = published_provenance(row, verdict, known, [other for other in rows if other is not row])
    numbers, links = [], document_links(row["document"])
    for name in SCORES:
        if row[name] is None:
            numbers.append(
                Number(
                    "-",
                    math.nan,
                    NOTHING,
                    row["kind"],
                    provenance,
                    row["source"],
                    likely=row["run_by_inferred"],
                    links=links,
                )
            )
            continue
        # Where a document repeats the number with other digits, the ledger's text says so.
        disputed = any(other[name] not in (None, row[name]) for other in rows) or is_repeated_otherwise(row, name)
        standing, counted = standings.of_published(row, verdict, name), published_background(verdict, name)
        numbers.append(Number(
            str(row[name]), float(row[name]), standing, row["kind"], provenance, row["source"], counted,
            is_inferred(row), disputed, row["run_by_inferred"], links=links,
        ))  # fmt: skip
    return tuple(numbers)


def _add_measured(found: Boards, measured: Iterable[Cell], standings: Standings, rules: Protocol) -> None:
    grouped: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in measured:
        key = cell.key
        remark = key.remark(with_origin=False)  # a number's kind says what its origin is
        grouped[cell.group, key.scenario, key.method, key.model, remark, key.origin, cell.joint].append(cell)
    for (group, scenario, method, model, remark, origin, _), members in grouped.items():
        # A submitted method may share nothing but its name with a published one: its facts are not known.
        known = method_facts().get(find_published_name(method) or "", UNKNOWN) if origin == "measured" else UNKNOWN
        numbers = {cell.setting: _measured_numbers(cell, standings, known, rules) for cell in members}
        run_by = HERE if origin == "measured" else ""
        extras = measured_extras((run for cell in members for run in cell.runs), known)
        badges = measured_badges(members, extras)
        entry = Entry(method, remark, model, run_by, known, extras, badges, members[0].ranked, numbers, {})
        found[group, scenario].append(entry)


def _measured_numbers(cell: Cell, standings: Standings, known: MethodFacts, rules: Protocol) -> Numbers:
    provenance, numbers = measured_provenance(cell, known, rules), []
    for name in SCORES:
        mean, std, _ = cell.numbers[name]
        standing = NOTHING if math.isnan(mean) else standings.of_measured(cell, name)
        text, counted = mean_text(mean, std, DECIMALS), measured_background(rules, name)
        numbers.append(Number(text, mean, standing, cell.key.origin, provenance, background=counted, spread=std))
    return tuple(numbers)
