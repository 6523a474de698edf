""" "Did you mean" names what can be written as it stands, and is silent where no name is close."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from cispbench.harness.cli import main
from cispbench.splits.errors import closest, nearest
from tests.harness.conftest import Commands

MEANT = {
    "lr=0.1": "optim.lr", "optim.lrr=1": "optim.lr", "optim.LR=1": "optim.lr", "data.lr=1": "optim.lr",
    "optm.lr=1": "optim.lr", "later.lrr=1": "later.lr", "crop=48": "data.crop", "batch=3": "optim.batch",
    "epoch=3": "optim.epochs", "distillation=3": "method.distillation", "method.alhpa=1": "method.alpha",
    "modle=x": "model", "optimm={lr: 1}": "optim",
}  # fmt: skip


@pytest.mark.parametrize("change", MEANT)
def test_an_override_is_looked_up_in_all_sections(commands: Commands, change: str) -> None:
    said = commands.refused(2, ["show", "mib", "--set", change])
    assert said.strip() == f"Error: recipe: unknown key {change.partition('=')[0]!r}. Did you mean {MEANT[change]!r}?"


FAR_AWAY = {"foo.bar=1": "data", "zzzzz=1": "optim", "optim.zzzz=1": "momentum"}


@pytest.mark.parametrize("change", FAR_AWAY)
def test_a_far_away_word_is_not_guessed_at(commands: Commands, change: str) -> None:
    said = commands.refused(2, ["show", "mib", "--set", change], "Known: ", FAR_AWAY[change])
    assert "Did you mean" not in said


def test_all_unknown_keys_are_said_at_once(commands: Commands) -> None:
    said = commands.refused(2, ["show", "mib", "--set", "lr=1", "--set", "crop=2"])
    assert "'optim.lr'" in said and "'data.crop'" in said


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["show", "MIB"], "'mib'"),
        (["show", "PloP"], "'plop'"),
        (["show", "mbss"], "'mbs'"),
        (["show", "mib", "--setting", "overlaped-15-1"], "'overlapped-15-1'"),
        (["show", "mib", "--setting", "Overlapped-15-1-b"], "'overlapped-15-1-b'"),
        (["show", "mib", "--setting", "ade:disjont-100-10"], "'ade:disjoint-100-10'"),
        (["show", "mib", "--setting", "overlapped_15_1"], "'overlapped-15-1'"),
        (["show", "mib", "--model", "Segmenter-Tiny"], "'segmenter-tiny'"),
        (["show", "mib", "--profile", "Quick"], "'quick'"),
    ],
)
def test_names_are_found_whatever_their_capitals(commands: Commands, words: list[str], meant: str) -> None:
    commands.refused(2, words, f"Did you mean {meant}?")


@pytest.mark.parametrize("words", [["show", "xyzzy"], ["show", "mib", "--setting", "qqqq-15-1"]])
def test_a_far_away_name_is_answered_by_what_there_is(commands: Commands, words: list[str]) -> None:
    assert "Did you mean" not in commands.refused(2, words, "Known: ")


def test_the_closest_of_several_names() -> None:
    assert closest("LR", ["later", "lr"]) == "lr" and closest("lr", ["later"]) is None
    assert closest("a", []) is None and closest("Ab", ["AB", "ab"]) == "AB"
    assert nearest("q", ["b", "a"]) == "Known: a, b."


def test_a_far_word_is_no_method_of_the_ledger() -> None:
    done = CliRunner().invoke(main, ["table", "--paper", "foo"])
    assert done.exit_code == 2 and "Did you mean" not in done.output and "Known: " in done.output
