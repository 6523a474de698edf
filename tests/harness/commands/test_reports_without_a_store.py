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


@pytest.mark.parametrize("command", ["leaderboard", "table"])
def test_a_folder_that_was_named_must_be_there(command: str) -> None:
    done = run(command, "--out", "elsewhere")
    assert done.exit_code == 1 and "the store elsewhere does not exist" in done.output
