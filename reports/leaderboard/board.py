"""The leaderboard of a store and the ledger: boards with their entries, and the standing of each of their numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cispbench.reports.leaderboard.provenance import measured_provenance, published_provenance
from cispbench.reports.leaderboard.status import INCONSISTENT, NOTHING, Standing, Standings
from cispbench.reports.tables.cells import Cell, cells
from cispbench.reports.tables.numbers import mean_text, ranks
from cispbench.reports.tables.published import is_inferred, verdicts
from cispbench.reports.tables.runs import SCORES, Group, setting_order
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.ledger import find_published_name, ledger_rows
from cispbench.results.protocols import Protocol, load_protocol
from cispbench.results.published_methods import UNKNOWN, MethodFacts, method_facts
from cispbench.results.store import Store
from cispbench.splits.datasets import SCENARIOS, datasets

DECIMALS = 2
_JOINT = "Joint"  # the ledger's name for training on all classes at once
_RANDOM, _USUAL = "none", "imagenet"  # what a record calls the weights that an encoder starts from


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

    ``kind``: measured, submitted, predictions, or one of the ledger's ``KINDS``; ``ranked``: whether
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


Boards = dict[tuple[Group, str], list[Entry]]


def load_leaderboard(store: Store, protocol: str = "strict") -> Leaderboard:
    """Return the leaderboard of a store, which may be empty, and of the whole ledger.

    Raises UsageError on an unknown protocol, StoreError on a record or ledger that cannot be read.
    """
    rules = load_protocol(protocol)
    measured = cells(load_runs(store, protocol))
    standings, facts = Standings(measured), method_facts()
    found: Boards = defaultdict(list)
    _add_published(found, standings, facts)
    _add_measured(found, measured, standings, facts, rules)
    boards = [_board(group, scenario, entries) for (group, scenario), entries in found.items()]
    listed = list(datasets({group.dataset for group, _ in found}))

    def order(board: Board) -> tuple[Any, ...]:
        kind, profile, dataset = board.group
        return not board.group.comparable, kind, profile, listed.index(dataset), SCENARIOS.index(board.scenario)

    return Leaderboard(rules, tuple(sorted(boards, key=order)))


def _board(group: Group, scenario: str, entries: Sequence[Entry]) -> Board:
    settings = tuple(setting_order(setting for entry in entries for setting in entry.by_setting))
    board = Board(group, scenario, settings, tuple(entries))
    main, total = board.main, SCORES.index("all")

    def order(entry: Entry) -> tuple[Any, ...]:
        value = entry.value(main, total)
        number = (1, 0.0) if math.isnan(value) else (0, -value)  # NaN would break the sort
        return (*number, entry.method.lower(), entry.remark, entry.backbone, entry.kind, *entry.by_setting)

    return replace(board, entries=tuple(sorted(entries, key=order)))


def _add_published(found: Boards, standings: Standings, facts: Mapping[str, MethodFacts]) -> None:
    grouped: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in ledger_rows():
        grouped[row["dataset"], row["scenario"], row["method"], row["backbone"], row["kind"], row["source"]].append(row)
    for (dataset, scenario, method, backbone, kind, _), members in grouped.items():
        known, joint = facts.get(method, UNKNOWN), method == _JOINT
        # A source may print two numbers for one setting (its paper's and its weights'): each has an entry of its own.
        entries: list[dict[str, SettingNumbers]] = []
        for row in members:
            free = next((numbers for numbers in entries if row["setting"] not in numbers), None)
            if free is None:
                entries.append(free := {})
            free[row["setting"]] = _published_numbers(row, standings, known)
        badges = tuple(_published_badges(backbone, known, joint))
        found[Group("full", "paper", dataset), scenario] += [
            Entry(method, "", backbone, kind, known, badges, not joint, numbers) for numbers in entries
        ]


def _published_numbers(row: Mapping[str, Any], standings: Standings, known: MethodFacts) -> SettingNumbers:
    verdict = verdicts()[tuple(row.values())]
    numbers = tuple(
        Number("-", math.nan, NOTHING)
        if row[name] is None
        else Number(str(row[name]), float(row[name]), standings.of_published(row, verdict, name))
        for name in SCORES
    )
    return SettingNumbers(numbers, published_provenance(row, verdict, known), is_inferred(row))


def _add_measured(
    found: Boards, measured: Iterable[Cell], standings: Standings, facts: Mapping[str, MethodFacts], rules: Protocol
) -> None:
    grouped: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in measured:
        key = cell.key
        remark = key.remark(with_origin=False)  # an entry's kind says what its origin is
        grouped[cell.group, key.scenario, key.method, key.model, remark, key.origin, cell.joint].append(cell)
    for (group, scenario, method, model, remark, origin, _), members in grouped.items():
        # A submitted method may share nothing but its name with a published one: its facts are not known.
        known = facts.get(find_published_name(method) or "", UNKNOWN) if origin == "measured" else UNKNOWN
        numbers = {cell.setting: _measured_numbers(cell, standings, known, rules) for cell in members}
        badges = tuple(dict.fromkeys(badge for cell in members for badge in _measured_badges(cell, known)))
        entry = Entry(method, remark, model, origin, known, badges, members[0].ranked, numbers)
        found[group, scenario].append(entry)


def _measured_numbers(cell: Cell, standings: Standings, known: MethodFacts, rules: Protocol) -> SettingNumbers:
    numbers = []
    for name in SCORES:
        mean, std, _ = cell.numbers[name]
        standing = NOTHING if math.isnan(mean) else standings.of_measured(cell, name)
        numbers.append(Number(mean_text(mean, std, DECIMALS), mean, standing))
    return SettingNumbers(tuple(numbers), measured_provenance(cell, known, rules))


def _published_badges(backbone: str, facts: MethodFacts, joint: bool) -> Iterator[Badge]:
    yield from _method_badges(facts, joint)
    if facts.selected_on_test:
        why = f"Its released code keeps the checkpoint that is best on the test images (protocol {facts.protocol})."
        yield Badge("test-selected", why)
    learnt = "images and texts of the web (CLIP)" if "CLIP" in backbone else facts.pretraining
    if learnt:
        yield Badge("pre-training", f"Its backbone has learnt from more than ImageNet-1k: {learnt}.")


def _measured_badges(cell: Cell, facts: MethodFacts) -> Iterator[Badge]:
    yield from _method_badges(facts, cell.joint)
    # Never test-selected: our runs test the weights of the last iteration, whatever the released code does.
    weights = cell.runs[0].facts.model.weights
    if weights == _RANDOM:
        yield Badge("no pre-training", "Its encoder starts from random weights.")
    elif _USUAL not in weights.lower():
        yield Badge("pre-training", f"Its encoder starts from {weights}, by its name not the usual ImageNet-1k.")


def _method_badges(facts: MethodFacts, joint: bool) -> Iterator[Badge]:
    if joint:
        yield Badge("upper bound", "Trained on all classes at once: shown, and not ranked.")
    if facts.exemplars:
        yield Badge("memory", f"It keeps training images of earlier steps: {facts.memory}.")
    if facts.supervision:
        yield Badge("extra supervision", f"It learns from more than the data set's labels: {facts.supervision}.")
