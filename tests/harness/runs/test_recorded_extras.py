"""A record takes the exemplars of its step from the step's manifest, and its companion maps from the plan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cispbench.results.checked_json import read_checked, write_checked


def manifest(commands: Any, finished: Any, step: int) -> Path:
    return Path(commands.steps / "steps" / json.loads(finished.records()[step].read_text())["key"] / "manifest.json")


def test_what_the_manifest_says_is_recorded(commands: Any, finished: Any) -> None:
    shutil.copytree(finished.steps, commands.steps)
    memory = [{"id": name, "step": 0, "classes": [1]} for name in "abcd"]
    used = {"exemplars": {"images": 4, "bytes": 9000}}
    path = manifest(commands, finished, 1)
    write_checked(path, read_checked(path) | used | {"memory": memory})
    commands.succeed(commands.tiny("--quiet"))
    first, second = (json.loads(record.read_text()) for record in (commands.records()[0], commands.records()[1]))
    assert (second["exemplars"], first["exemplars"]) == (used["exemplars"], None)
    assert (second["supervision"], first["supervision"]) == ([], [])


def test_a_damaged_count_of_exemplars_is_noticed(commands: Any, finished: Any) -> None:
    shutil.copytree(finished.steps, commands.steps)
    path = manifest(commands, finished, 1)
    write_checked(path, read_checked(path) | {"exemplars": {"images": "4", "bytes": 9000}})
    result = commands.succeed(commands.tiny("--quiet"))
    assert "exemplars" in result.stderr and f"kept as {path.parent.name}.damaged-0" in result.stderr
    assert commands.outcome() == finished.outcome()
