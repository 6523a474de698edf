"""Disks that are full and folders that cannot be written: said at once, and the same command goes on afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.training import monitor


@pytest.mark.parametrize(("leave", "steps"), [(0, 0), (4096, 0), (100_000, 0), (1_200_000, 1)])
def test_a_full_disk_for_weights(commands: Any, finished: Any, disk: Path, fill: Any, leave: int, steps: int) -> None:
    commands.steps = disk / "steps"
    filler = fill(leave)
    message = commands.refused(1, commands.tiny(), "disk is full", str(disk))
    assert "Free some space" in message
    assert len(commands.records()) == len(list(commands.steps.glob("steps/*"))) == steps
    assert commands.leftovers() == []
    filler.unlink()
    commands.succeed(commands.tiny())
    assert commands.outcome() == finished.outcome()
    assert commands.leftovers() == []


def test_a_full_disk_for_checkpoints(
    commands: Any, finished: Any, disk: Path, fill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "CHECKPOINT_SECONDS", 0.0)
    commands.steps = disk / "steps"
    filler = fill(100_000)
    commands.refused(1, commands.tiny(), "disk is full", str(disk))
    assert commands.leftovers() == []
    filler.unlink()
    commands.succeed(commands.tiny())
    assert commands.outcome() == finished.outcome()


@pytest.mark.parametrize("leave", [0, 8_000])
def test_a_full_disk_for_records(commands: Any, finished: Any, disk: Path, fill: Any, leave: int) -> None:
    commands.out = disk / "out"
    filler = fill(leave)
    message = commands.refused(1, commands.tiny(), "disk is full", str(commands.out))
    assert "Free some space" in message
    assert len(commands.records()) <= 1
    assert commands.leftovers() == []
    filler.unlink()
    commands.succeed(commands.tiny())
    assert commands.outcome() == finished.outcome()


@pytest.mark.parametrize("which", ["out", "steps"])
@pytest.mark.parametrize("how", ["read-only", "below a file"])
def test_a_folder_that_cannot_be_written_is_said_before_training(
    commands: Any, finished: Any, disk: Path, freeze: Any, which: str, how: str
) -> None:
    file = commands.home / "file"
    file.write_text("here")
    if how == "read-only":
        freeze()
    place = disk / "folder" if how == "read-only" else file / "folder"
    good = getattr(commands, which)
    setattr(commands, which, place)
    result = commands.invoke(commands.tiny())
    assert result.exit_code == 1
    assert "\nstep 0" not in f"\n{result.stderr}", "it was trained before it was known"
    message = commands.refused(1, commands.tiny(), str(place))
    assert "read-only" in message if how == "read-only" else "file is in the way" in message
    setattr(commands, which, good)
    commands.succeed(commands.tiny())
    assert commands.outcome() == finished.outcome()


def test_a_finished_run_can_be_looked_at_on_a_read_only_disk(
    commands: Any, finished: Any, disk: Path, freeze: Any
) -> None:
    shutil.copytree(finished.out, disk / "out")
    shutil.copytree(finished.steps, disk / "steps")
    freeze()
    commands.out, commands.steps = disk / "out", disk / "steps"
    assert "finished before" in commands.succeed(commands.tiny()).stdout
    assert "mbs" in commands.succeed(["table", "--out", str(commands.out)]).stdout


def test_weights_on_a_read_only_disk_serve_new_records(commands: Any, finished: Any, disk: Path, freeze: Any) -> None:
    shutil.copytree(finished.steps, disk / "steps")
    freeze()
    commands.steps = disk / "steps"
    commands.succeed(commands.tiny())
    assert commands.outcome() == finished.outcome()


def test_a_table_of_unreadable_folders_is_an_error_and_not_an_empty_table(commands: Any) -> None:
    file = commands.home / "file"
    file.write_text("here")
    commands.refused(1, ["table", "--out", str(file / "results")], str(file / "results"))
