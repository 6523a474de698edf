"""Sound files in wrong places: the checksum of each is right, and none may lend its numbers to another step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.training import monitor
from cispbench.harness.training.monitor import Monitor


def words(commands: Any, seed: int) -> list[str]:
    return [*commands.tiny(method="finetune", iterations=(4, 4)), "--seed", str(seed)]


def run_both(commands: Any) -> tuple[dict[int, Any], dict[int, Path]]:
    """Run seed 1, then seed 0 alone; return the outcome of seed 0, and the folder of each seed's last step."""
    folders = {}
    for seed in (1, 0):
        shutil.rmtree(commands.out, ignore_errors=True)
        commands.succeed(words(commands, seed))
        key = json.loads(commands.records()[1].read_text())["key"]
        folders[seed] = commands.steps / "steps" / key
    return commands.outcome(), folders


def test_an_evaluation_of_another_step_is_not_believed(commands: Any) -> None:
    expected, folders = run_both(commands)
    (ours,), (other,) = (list(folders[seed].glob("evaluation-*.json")) for seed in (0, 1))
    assert ours.name == other.name and ours.read_bytes() != other.read_bytes()
    shutil.copy(other, ours)
    shutil.rmtree(commands.out)
    result = commands.succeed(words(commands, 0))
    assert commands.outcome() == expected
    assert f"{ours} is damaged" in result.stderr and "another step" in result.stderr


def test_a_checkpoint_of_another_step_is_not_gone_on_from(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, folders = run_both(commands)
    for folder in folders.values():
        shutil.rmtree(folder)
    shutil.rmtree(commands.out)
    with monkeypatch.context() as patch:
        patch.setattr(monitor, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(Monitor, "_save", saving_and_stopping(Monitor._save))
        commands.invoke(words(commands, 1))
    (other,) = commands.steps.glob("work/*/checkpoint.pt")
    ours = commands.steps / "work" / folders[0].name / "checkpoint.pt"
    assert ours != other
    shutil.copy(other, ours)
    shutil.rmtree(commands.out)
    result = commands.succeed(words(commands, 0))
    assert commands.outcome() == expected
    assert f"{ours} is that of another step" in result.stderr


def test_a_file_in_place_of_a_step_is_set_aside(commands: Any) -> None:
    expected, folders = run_both(commands)
    shutil.rmtree(folders[0])
    folders[0].write_bytes(b"x")
    shutil.rmtree(commands.out)
    result = commands.succeed(words(commands, 0))
    assert commands.outcome() == expected
    assert f"{folders[0].name}.damaged-0 and the step is trained anew" in result.stderr


def saving_and_stopping(save: Any) -> Any:
    def stop_in_step_1(self: Monitor) -> None:
        if self._job.context.step == 1:
            save(self)
            raise KeyboardInterrupt

    return stop_in_step_1
