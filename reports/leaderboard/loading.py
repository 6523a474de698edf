"""The leaderboard of a store and the ledger: which entries there are, and how each of their numbers stands."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from cispbench.reports.leaderboard.badges import measured_badges, published_badges
from cispbench.reports.leaderboard.board import DECIMALS, Board, Entry, Leaderboard, Number, Place, main_setting
from cispbench.reports.leaderboard.provenance import measured_provenance, published_provenance
from cispbench.reports.leaderboard.status import NOTHING, Standings
from cispbench.reports.tables.aggregate import SCORES, Cell, cells, load_runs
from cispbench.reports.tables.grid import remark
from cispbench.reports.tables.published import verdicts
from cispbench.reports.tables.ranking import shown
from cispbench.reports.tables.runs import Group, sorted_settings
from cispbench.results.conventions import Verdict
from cispbench.results.ledger import find_published_name, ledger_rows
from cispbench.results.protocols import Protocol, load_protocol
from cispbench.results.published_methods import UNKNOWN, MethodFacts, method_facts
from cispbench.results.store import Store
from cispbench.splits.datasets import SCENARIOS, datasets

_UPPER_BOUND = "Joint"  # the ledger's name for training on all classes at once


def load_leaderboard(store: Store, protocol: str = "strict") -> Leaderboard:
    """Return the leaderboard of a store, which may be empty, and of the whole ledger.

    Raises UsageError on an unknown protocol, StoreError on a record or ledger that cannot be read.
    """
    rules = load_protocol(protocol)
    measured = cells(load_runs(store, protocol))
    standings, facts = Standings(measured), method_facts()
    found: dict[tuple[Group, str], list[Entry]] = defaultdict(list)
    for place, entries in _published_entries(standings, facts).items():
        found[place] += entries
    for place, entries in _measured_entries(measured, standings, facts, rules).items():
        found[place] += entries
    boards = [_board(group, scenario, entries) for (group, scenario), entries in found.items()]
    return Leaderboard(rules, tuple(sorted(boards, key=_order)))


def _order(board: Board) -> tuple[Any, ...]:
    group = board.group
    places = (list(datasets()).index(group.dataset), SCENARIOS.index(board.scenario))
    return not board.comparable, group.kind, group.profile, *places


def _board(group: Group, scenario: str, entries: list[Entry]) -> Board:
    settings = tuple(sorted_settings({setting for entry in entries for setting in entry.places}))
    main, total = main_setting(settings, entries), SCORES.index("all")

    def place(entry: Entry) -> tuple[Any, ...]:
        value = entry.value(main, total)
        number = (1, 0.0) if math.isnan(value) else (0, -value)
        return (*number, entry.method.lower(), entry.remark, entry.backbone, entry.kind, *entry.places)

    return Board(group, scenario, settings, tuple(sorted(entries, key=place)))


def _published_entries(standings: Standings, facts: Mapping[str, MethodFacts]) -> dict[tuple[Group, str], list[Entry]]:
    grouped: dict[tuple[str, ...], list[tuple[dict[str, Any], Verdict]]] = defaultdict(list)
    judged = verdicts()
    for row in ledger_rows():
        grouped[_identity(row)].append((row, judged[tuple(row.values())]))
    found: dict[tuple[Group, str], list[Entry]] = defaultdict(list)
    for members in grouped.values():
        first = members[0][0]
        known = facts.get(first["method"], UNKNOWN)
        # A source may print two numbers for one setting (its paper's and its weights'): each has an entry of its own.
        entries: list[dict[str, Place]] = []
        for row, verdict in members:
            free = next((places for places in entries if row["setting"] not in places), None)
            if free is None:
                entries.append(free := {})
            free[row["setting"]] = _published_place(row, verdict, standings, known)
        joint = first["method"] == _UPPER_BOUND
        badges = published_badges(first["backbone"], known, joint)
        group = Group("full", "paper", first["dataset"])
        for places in entries:
            entry = Entry(first["method"], "", first["backbone"], first["kind"], known, badges, not joint, places)
            found[group, first["scenario"]].append(entry)
    return found


def _identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("dataset", "scenario", "method", "backbone", "kind", "source"))


def _published_place(row: Mapping[str, Any], verdict: Verdict, standings: Standings, known: MethodFacts) -> Place:
    numbers = []
    for name in SCORES:
        printed = row[name]
        if printed is None:
            numbers.append(Number("-", math.nan, NOTHING))
        else:
            numbers.append(Number(str(printed), float(printed), standings.of_published(row, verdict, name)))
    inferred = (row["assignment"] or "").startswith("inferred")
    return Place(tuple(numbers), published_provenance(row, verdict, known), inferred)


def _measured_entries(
    measured: Iterable[Cell],
    standings: Standings,
    facts: Mapping[str, MethodFacts],
    rules: Protocol,
) -> dict[tuple[Group, str], list[Entry]]:
    grouped: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in measured:
        key = cell.key
        words = remark(replace(cell, key=key._replace(origin="measured")))  # an entry's kind says what its origin is
        grouped[cell.group, key.scenario, key.method, key.model, words, key.origin, cell.joint].append(cell)
    found: dict[tuple[Group, str], list[Entry]] = defaultdict(list)
    for (group, scenario, method, model, words, origin, _), members in grouped.items():
        # A stranger's method may only share its name with a published one.
        known = facts.get(find_published_name(method) or "", UNKNOWN) if origin == "measured" else UNKNOWN
        places = {cell.setting: _measured_place(cell, standings, known, rules) for cell in members}
        badges = tuple(dict.fromkeys(badge for cell in members for badge in measured_badges(cell, known)))
        entry = Entry(method, words, model, origin, known, badges, members[0].ranked, places)
        found[group, scenario].append(entry)
    return found


def _measured_place(cell: Cell, standings: Standings, known: MethodFacts, rules: Protocol) -> Place:
    numbers = []
    for name in SCORES:
        mean, std, _ = cell.numbers[name]
        text = shown(mean, DECIMALS) + ("" if math.isnan(std) else f" ± {shown(std, DECIMALS)}")
        standing = NOTHING if math.isnan(mean) else standings.of_measured(cell, name)
        numbers.append(Number(text, mean, standing))
    return Place(tuple(numbers), measured_provenance(cell, known, rules))
