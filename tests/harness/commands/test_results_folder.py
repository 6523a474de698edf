"""The folder of the records: own runs never land among those that come with cispbench unless somebody says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

import cispbench.results
from cispbench.harness.cli import main

READING = ("check", "leaderboard", "panels", "plots", "status", "submit", "table")
WRITING = ("accept", "doctor", "run", "score", "sweep")


def out_option(command: str) -> click.Option:
    (option,) = [entry for entry in main.commands[command].params if entry.name == "out"]
    assert isinstance(option, click.Option)
    return option


@pytest.mark.parametrize("command", [*READING, *WRITING])
def test_from_inside_a_checkout_the_default_is_not_the_committed_store(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = Path(cispbench.results.__file__).parent
    monkeypatch.chdir(committed.parent)
    assert Path(str(out_option(command).default)).resolve() != committed


def test_what_reads_records_is_named_results_and_what_writes_them_out() -> None:
    assert all(out_option(command).opts == ["--results", "--out"] for command in READING)
    assert all(out_option(command).opts == ["--out"] for command in WRITING)


@pytest.mark.parametrize("name", ["--results", "--out"])
def test_the_old_name_reads_the_same_folder(commands: Any, finished: Any, name: str) -> None:
    assert "mbs" in commands.succeed(["table", name, str(finished.out)]).stdout


def test_a_variable_names_the_folder_once_for_all(
    commands: Any, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CISPBENCH_RESULTS", str(finished.out))
    assert "mbs" in commands.succeed(["table"]).stdout
    monkeypatch.setenv("CISPBENCH_RESULTS", "")
    assert "No finished runs in cispbench-results." in commands.succeed(["table"]).stdout
    commands.refused(1, ["check"], "the store cispbench-results does not exist", "--results")
