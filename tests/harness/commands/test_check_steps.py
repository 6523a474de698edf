"""`cispbench check --store --steps-dir`: the trained steps are audited beside the records."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest


@pytest.fixture
def done(commands: Any, finished: Any) -> Any:
    shutil.copytree(finished.out, commands.out)
    shutil.copytree(finished.steps, commands.steps)
    return commands


def words(commands: Any, *more: str) -> list[str]:
    return ["check", "--store", "--results", str(commands.out), "--steps-dir", str(commands.steps), *more]


def test_sound_stores(done: Any) -> None:
    printed = done.succeed(words(done)).stdout
    assert "2 records of 1 run read, 0 of them without a checksum" in printed
    assert "2 sound steps" in printed and "2 evaluations" in printed
    found = json.loads(done.succeed(words(done, "--json")).stdout)
    assert found["steps"]["findings"] == [] and found["steps"]["counts"]["steps"] == 2


def test_damaged_weights_are_named_and_nothing_is_changed(done: Any) -> None:
    path = next(done.steps.glob("steps/*/weights.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    result = done.invoke(words(done))
    assert result.exit_code == 1
    assert path.parent.name in result.stdout and "trained anew" in result.stdout and "1 damaged." in result.stdout
    assert path.read_bytes() == bytes(content)


def test_a_folder_that_is_not_there_is_an_error(done: Any) -> None:
    done.refused(1, [*words(done)[:-1], str(done.home / "none")], "does not exist", "--steps-dir")


def test_steps_are_read_with_store_alone(done: Any) -> None:
    done.refused(2, ["check", *words(done)[2:]], "--steps-dir go with --store")
