"""Numbers with and without the background: marked, ranked apart, and subtracted from each other only where alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cispbench.reports.leaderboard.background import background_mark, measured_background, published_background
from cispbench.reports.leaderboard.board import Board, load_leaderboard
from cispbench.reports.leaderboard.status import Standings
from cispbench.reports.leaderboard.text import leaderboard_markdown, protocol_note
from cispbench.reports.tables.published import verdicts
from cispbench.results.conventions import Verdict
from cispbench.results.ledger import ledger_rows
from cispbench.results.protocols import load_protocol
from cispbench.results.store import Store


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Board, ...]:
    return load_leaderboard(Store(tmp_path_factory.mktemp("nothing"))).boards


@pytest.mark.parametrize(
    ("verdict", "old", "everything"),
    [
        (Verdict("without", ("without",), "without", False), False, False),
        (Verdict("both", ("both",), "both", False), True, True),
        (Verdict("old-without", ("old-without",), "old-without", False), False, True),
        (Verdict("without", ("without", "both"), "both", True), True, True),
        (Verdict("without", ("without", "both"), None, False), None, None),
        (Verdict("both", ("both", "old-without"), None, False), None, True),  # they agree on all
        (Verdict("incomplete", (), None, False), None, None),
    ],
)
def test_the_reading_of_a_row_decides(verdict: Verdict, old: bool | None, everything: bool | None) -> None:
    assert published_background(verdict, "old") is old
    assert published_background(verdict, "all") is everything
    assert published_background(verdict, "new") is False


def test_the_protocol_of_a_measured_number_decides() -> None:
    counted = {
        name: [measured_background(load_protocol(name), score) for score in ("old", "new", "all")]
        for name in ("strict", "mib20", "plop21")
    }
    assert counted == {
        "strict": [False, False, True], "mib20": [False, False, False], "plop21": [True, False, True],
    }  # fmt: skip
    assert [background_mark(counted) for counted in (True, False, None)] == ["+b", "-b", "b?"]


def test_the_best_is_the_best_of_those_that_count_alike(boards: tuple[Board, ...]) -> None:
    mixed = 0
    for board in boards:
        for setting in board.settings:
            for score in range(3):
                ranks = board.ranks(setting, score)
                shown = [entry.number(setting, score, competing=True) for entry in board.entries]
                for counted in (True, False):
                    alike = [
                        (round(number.value, 2), rank) for number, rank in zip(shown, ranks, strict=True)
                        if number is not None and number.background is counted
                    ]  # fmt: skip
                    highest = max((value for value, _ in alike), default=None)
                    best = {value for value, rank in alike if rank == 1}
                    assert best == ({highest} if len(alike) > 1 else set())
                known = {number.background for number in shown if number is not None}
                mixed += len(known) == 2
                for entry, rank in zip(board.entries, ranks, strict=True):
                    number = entry.number(setting, score)
                    if number is not None and number.background is None:
                        assert rank == 0
    assert mixed > 5  # columns in which both kinds of numbers compete


def rows_of(method: str, setting: str, kind: str) -> list[dict[str, object]]:
    wanted = (method, setting, kind)
    return [row for row in ledger_rows() if (row["method"], row["setting"], row["kind"]) == wanted]


def test_numbers_that_count_otherwise_are_not_subtracted() -> None:
    (own,) = rows_of("MBS", "overlapped-15-1", "own")
    standings, unknown = Standings([]), verdicts()[tuple(own.values())]
    both = standings.of_published(own, unknown, "all")
    assert (both.status, both.off) == ("re-run by others", "-1.6, -2.6")
    # Were it known that the own number leaves the background out, neither of the others would compare with it.
    without = replace(unknown, label="without", readings=("without",), likely="without")
    apart = standings.of_published(own, without, "all")
    assert apart.status == "re-run by others" and apart.off == "" and apart.words == "re-run by others"
    assert apart.why.count("not compared: it counts the background otherwise") == 2
    alike = standings.of_published(own, replace(unknown, label="both", readings=("both",), likely="both"), "all")
    assert alike.off == "-1.6, -2.6"


@pytest.mark.parametrize(
    ("method", "setting", "words"),
    [
        ("MBS", "overlapped-15-1", "re-run by others: -1.6, -2.6"),  # 80.6 b?; 79.0 +b, 78.0 +b
        ("MBS", "disjoint-15-5", "re-run by others: -2.6, +0.3 b?"),  # 79.0 b?; 76.4 -b, 79.3 +b: one of them is unlike
        ("MBS", "disjoint-15-1", "re-run by others: -4.0, -1.6 b?"),  # 78.1 b?; 74.1 -b, 76.5 +b
        ("MiB", "overlapped-15-1", "re-run by others: +4.9 b?"),  # 29.7 -b; 34.6 b?
        ("SATS", "overlapped-15-1", "re-run by others: -5.39"),  # 74.48 +b; 69.09 +b
    ],
)
def test_differences_of_numbers_that_may_count_otherwise_say_so(method: str, setting: str, words: str) -> None:
    (own,) = rows_of(method, setting, "own")
    standing = Standings([]).of_published(own, verdicts()[tuple(own.values())], "all")
    assert standing.words == words
    assert ("not all known to count" in standing.why) == words.endswith("b?")


def test_a_rerun_whose_setting_is_inferred_says_so() -> None:
    (own,) = rows_of("PLOP", "overlapped-15-1", "own")
    standing = Standings([]).of_published(own, verdicts()[tuple(own.values())], "all")
    assert standing.words == "re-run by others: +0.04" and standing.why.count("its setting inferred") == 1


def test_a_rerun_is_of_the_same_network(boards: tuple[Board, ...]) -> None:
    reruns = {(row["setting"], row["method"], row["backbone"]) for row in ledger_rows() if row["kind"] == "re-run"}
    found = 0
    for board in boards:
        for entry in board.entries:
            for setting, numbers in entry.by_setting.items():
                if numbers[2].standing.status == "re-run by others":
                    found += 1
                    assert (setting, entry.method, entry.backbone) in reruns
                    assert numbers[2].kind in ("own", "quoted")
    assert found > 11  # the own numbers of MBS alone


def test_no_text_calls_the_difference_small(tmp_path: Path) -> None:
    text = leaderboard_markdown(load_leaderboard(Store(tmp_path)))
    note = protocol_note(load_protocol("strict"))
    assert "by a point or two" not in text and "many points where a method is weak" in note
    assert "+b" in text and "-b" in text and "b?" in text and "ranked apart" in text
