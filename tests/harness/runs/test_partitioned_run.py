"""A run of a partitioned setting trains each image in one step alone, by the seed in the setting's name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cispbench.harness.data.source import find_source
from cispbench.splits.selection import digest, select_images
from cispbench.splits.settings import parse_setting


@pytest.mark.parametrize("name", ["partitioned-19-1", "partitioned-15-5-s2"])
def test_each_step_trains_on_its_own_images(commands: Any, name: str) -> None:
    words = commands.tiny("--quiet", method="finetune")
    words[words.index("--setting") + 1] = name
    commands.succeed(words)
    setting = parse_setting(name)
    presence = find_source("voc", commands.data, commands.steps).presence("train")
    lists = [select_images(presence, setting, step) for step in range(2)]
    assert set(lists[0]).isdisjoint(lists[1]) and len(lists[0]) + len(lists[1]) == len(presence)
    for step, path in commands.records().items():
        record = json.loads(path.read_text())
        assert (record["setting"], record["scenario"]) == (name, "partitioned")
        assert record["data"]["train_images"] == len(lists[step])
        assert record["data"]["list_sha256"] == digest(lists[step])
    assert len(commands.records()) == 2
