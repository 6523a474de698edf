"""A damaged record is set aside by the command that can write it anew, and said; reports only name it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cispbench.results.record import SCHEMA


@pytest.fixture
def damaged(commands: Any, finished: Any) -> tuple[Any, Path]:
    """Commands on a copy of the finished run, whose last record has one digit changed; and that record's file."""
    shutil.copytree(finished.out, commands.out)
    shutil.copytree(finished.steps, commands.steps)
    path = commands.records()[1]
    sound = path.read_bytes()
    place = sound.index(b'"iterations": ') + len(b'"iterations": ')
    path.write_bytes(sound[:place] + b"7" + sound[place + 1 :])
    return commands, path


def test_a_run_writes_a_damaged_record_anew(damaged: tuple[Any, Path], finished: Any) -> None:
    commands, path = damaged
    result = commands.succeed(commands.tiny("--quiet"))
    assert f"{path}: it is not what was written" in result.stderr
    assert "kept as step-1.json.damaged-0" in result.stderr
    assert commands.outcome() == finished.outcome()
    assert commands.succeed(commands.tiny("--quiet")).stderr == ""


def test_a_sweep_sets_every_damaged_record_aside(damaged: tuple[Any, Path], finished: Any) -> None:
    commands, path = damaged
    commands.succeed(commands.sweep("finetune", "--quiet"))
    assert not path.exists()  # of another run than the sweep's
    assert path.with_name("step-1.json.damaged-0").is_file()


def test_a_report_names_it_and_changes_nothing(damaged: tuple[Any, Path]) -> None:
    commands, path = damaged
    error = commands.refused(1, ["table", "--results", str(commands.out)], str(path), "start its run again")
    assert "not what was written" in error
    assert path.is_file()


def test_a_sound_record_without_a_checksum_stays(damaged: tuple[Any, Path]) -> None:
    commands, _ = damaged
    first, *lines = commands.records()[0].read_bytes().splitlines(keepends=True)
    old = first + b"".join(lines[1:]).replace(f'"schema": {SCHEMA}'.encode(), b'"schema": 2')
    code = [line for line in old.splitlines() if b'"code"' in line]
    old = old.replace(code[0] + b"\n", b"") if code else old
    commands.records()[0].write_bytes(old)
    result = commands.succeed(commands.tiny("--quiet"))
    assert "step-0.json" not in result.stderr
    assert commands.records()[0].read_bytes() == old
