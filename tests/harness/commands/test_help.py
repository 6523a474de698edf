"""Help pages: the summary of every command is a whole sentence, and no line runs over the page."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from cispbench.harness.cli import main


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


ALL = list(commands(main))
NAMES = [" ".join(words) or "cispbench" for words, _ in ALL]


def page(words: tuple[str, ...], columns: int) -> str:
    result = CliRunner().invoke(main, [*words, "--help"], prog_name="cispbench", terminal_width=columns)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize(("words", "command"), ALL, ids=NAMES)
def test_the_summary_is_a_whole_sentence(words: tuple[str, ...], command: click.Command) -> None:
    text = page(words, 80)
    assert "..." not in text.replace("[ARGS]...", "").replace("[NAME]...", "").replace("NAME,...", "").replace(
        "ID,...", ""
    )
    first = text.split("\n\n")[1].strip().split(". ")[0]
    assert len(first) <= 76 and "\n" not in first, first


@pytest.mark.parametrize(("words", "command"), ALL, ids=NAMES)
def test_no_line_is_wider_than_100_columns(words: tuple[str, ...], command: click.Command) -> None:
    assert [line for line in page(words, 100).splitlines() if len(line) > 100] == []


@pytest.mark.parametrize(("words", "command"), ALL, ids=NAMES)
def test_every_command_has_an_example(words: tuple[str, ...], command: click.Command) -> None:
    assert isinstance(command, click.Group) or "Example:\n" in page(words, 100)
