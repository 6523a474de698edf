"""``leaderboard`` and ``table`` in an empty folder: the published numbers alone, and that nothing is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cispbench.harness.cli import main


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_the_leaderboard_shows_the_published_numbers_and_says_that_nothing_is_measured(empty: Path) -> None:
    done = run("leaderboard", "--output", "site")
    assert done.exit_code == 0 and "Nothing is measured" in done.output
    for file in ("leaderboard.md", "leaderboard/index.html"):
        text = (empty / "site" / file).read_text(encoding="utf-8")
        assert "Nothing is measured" in text and "77.19" in text
    assert not (empty / "cispbench-results").exists()
    assert run("leaderboard").exit_code == 0 and (empty / "cispbench-results" / "leaderboard" / "index.html").exists()


def test_the_table_says_that_nothing_is_measured() -> None:
    done = run("table")
    assert done.exit_code == 0 and "No finished runs in cispbench-results." in done.output and "--paper" in done.output
    paper = run("table", "--paper", "mbs")
    assert paper.exit_code == 0 and "77.19" in paper.output and "Not measured here yet." in paper.output


def test_a_table_of_an_empty_folder_says_what_to_do_next(empty: Path) -> None:
    for words in (["table"], ["table", "--compare-protocols"]):
        (empty / "cispbench-results").mkdir(exist_ok=True)
        done = run(*words)
        assert done.exit_code == 0 and "`cispbench run` makes one" in done.output and "--results" in done.output


def test_the_status_of_an_empty_folder_says_what_to_do_next() -> None:
    for more, folder in (([], "cispbench-results"), (["--results", "elsewhere"], "elsewhere")):
        done = run("status", *more)
        assert done.exit_code == 0 and f"No such run has a record in {folder}." in done.output
        assert "`cispbench run` starts a run" in done.output
    assert "No such run" not in run("status", "--json").output


def test_an_empty_folder_passes_the_check_if_that_is_asked_for() -> None:
    refused = run("check")
    assert refused.exit_code == 1 and "does not exist" in refused.output and "--results" in refused.output
    assert run("check", "--allow-empty").exit_code == 0
    assert run("check", "--allow-empty", "--results", "elsewhere").exit_code == 1


@pytest.mark.parametrize("command", ["leaderboard", "table"])
def test_a_folder_that_was_named_must_be_there(command: str) -> None:
    done = run(command, "--out", "elsewhere")
    assert done.exit_code == 1 and "the store elsewhere does not exist" in done.output
