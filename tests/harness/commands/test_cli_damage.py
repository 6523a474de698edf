"""Damaged files of the step store and of trainings: named, set aside, and made anew with the same bits."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest
import torch

from cispbench.harness.runs.step_files import Manifest
from cispbench.harness.runs.step_store import DamagedStepError, StepStore
from cispbench.harness.training.checkpoint_file import read_checkpoint, write_checkpoint
from cispbench.results.atomic import write_atomic
from cispbench.results.checked_json import read_checked, write_checked
from cispbench.splits.errors import StoreError


@pytest.fixture
def done(commands: Any, finished: Any) -> Any:
    """Commands on a private copy of the finished tiny run."""
    shutil.copytree(finished.out, commands.out)
    shutil.copytree(finished.steps, commands.steps)
    return commands


def step_folder(commands: Any, finished: Any, step: int) -> Path:
    return Path(commands.steps / "steps" / str(json.loads(finished.records()[step].read_text())["key"]))


def evaluation_of(commands: Any, finished: Any, step: int) -> Path:
    (path,) = step_folder(commands, finished, step).glob("evaluation-*.json")
    return path


@pytest.mark.parametrize("content", ["text", "cut", "without checksum", "folder", "pipe"])
def test_a_checkpoint_that_cannot_be_used_is_named_set_aside_and_the_step_starts_anew(
    commands: Any, finished: Any, content: str
) -> None:
    path = commands.steps / "work" / step_folder(commands, finished, 0).name / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    if content == "text":
        path.write_text("this is no checkpoint")
    elif content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif content == "cut":
        write_checkpoint(path, {"iteration": 1, "model": {"conv": torch.zeros(1000)}})
        path.write_bytes(path.read_bytes()[:1500])
    else:
        torch.save({"iteration": 1, "model": {"conv": torch.zeros(1000)}}, path)
    result = commands.succeed(commands.tiny("--quiet"))
    assert f"the checkpoint {path} is damaged" in result.stderr
    assert commands.outcome() == finished.outcome()
    assert [left.rpartition("/")[2] for left in commands.leftovers()] == ["checkpoint.pt.damaged-0"]
    assert f"kept as {path.name}.damaged-0" in result.stderr


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 5}', "one count", "no checksum", "folder", "pipe"])
def test_a_damaged_evaluation_is_named_set_aside_and_made_anew(done: Any, finished: Any, damage: str) -> None:
    path = evaluation_of(done, finished, 1)
    content = read_checked(path)
    if damage == "one count":
        count = str(content["confusion"][0][0])
        path.write_text(path.read_text().replace(count, str(int(count) + 200_000), 1))
    elif damage == "no checksum":
        path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    elif damage in ("folder", "pipe"):
        path.unlink()
        path.mkdir() if damage == "folder" else os.mkfifo(path)
    else:
        path.write_text(damage)
    done.records()[1].unlink()
    result = done.succeed(done.tiny("--quiet"))
    assert f"{path} is damaged" in result.stderr
    assert f"kept as {path.name}.damaged-0" in result.stderr
    assert done.outcome() == finished.outcome()
    assert read_checked(path)["confusion"] == content["confusion"]


@pytest.mark.parametrize("recorded", [True, False])
def test_counts_of_other_test_images_are_refused_and_both_files_named(done: Any, finished: Any, recorded: bool) -> None:
    wrong, right = evaluation_of(done, finished, 0), evaluation_of(done, finished, 1)
    content = read_checked(wrong)
    content["confusion"][0][0] += 200_000
    write_checked(wrong, content)
    if recorded:
        right = done.records()[1]
        done.records()[0].unlink()
    else:
        shutil.rmtree(done.out)
    before = done.records()
    done.refused(1, done.tiny(), str(wrong), str(right), "pixels of class index 0", "rerun")
    assert done.records() == before
    wrong.unlink()
    done.succeed(done.tiny())
    assert done.outcome() == finished.outcome()


@pytest.mark.parametrize("name", sorted(Manifest.__dataclass_fields__))
def test_a_manifest_with_a_wrong_field_is_damaged(done: Any, finished: Any, name: str) -> None:
    path = step_folder(done, finished, 1) / "manifest.json"
    store, content = StepStore(done.steps), read_checked(path)
    changed = [content | {name: [["wrong"]]}]
    wanted = Manifest.__dataclass_fields__[name]
    if wanted.default is MISSING and wanted.default_factory is MISSING:
        changed.append({key: value for key, value in content.items() if key != name})
    for other in changed:
        write_checked(path, other)
        with pytest.raises(DamagedStepError, match=re.escape(str(path))):
            store.manifest(path.parent.name)


def test_a_damaged_key_of_a_manifest_is_no_traceback(done: Any, finished: Any) -> None:
    path = step_folder(done, finished, 1) / "manifest.json"
    path.write_text(path.read_text().replace('"losses"', '"lossez"'))
    shutil.rmtree(done.out)
    result = done.succeed(done.tiny("--quiet"))
    assert f"{path} is damaged" in result.stderr
    assert done.outcome() == finished.outcome()


def test_a_manifest_of_an_earlier_version_is_used_and_that_is_said(done: Any, finished: Any) -> None:
    for step in (0, 1):
        path = step_folder(done, finished, step) / "manifest.json"
        write_atomic(path, (json.dumps(read_checked(path) | {"schema": 1}, indent=1, sort_keys=True) + "\n").encode())
    shutil.rmtree(done.out)
    result = done.succeed(done.tiny())
    assert result.stderr.count("has no checksum (an earlier version wrote it)") == 2
    assert "damaged" not in result.stderr
    assert done.outcome() == finished.outcome()


def test_a_manifest_of_a_later_version_is_left_alone(done: Any, finished: Any) -> None:
    path = step_folder(done, finished, 1) / "manifest.json"
    write_checked(path, read_checked(path) | {"schema": 3, "more": 1})
    before = path.read_bytes()
    done.records()[1].unlink()
    done.refused(1, done.tiny(), str(path), "Update cispbench")
    assert path.read_bytes() == before


def test_no_flipped_bit_makes_an_old_manifest_of_a_new_one(done: Any, finished: Any) -> None:
    path = step_folder(done, finished, 1) / "manifest.json"
    content, store = path.read_bytes(), StepStore(done.steps)
    schema = content.index(b'"schema"')
    # Every bit of the head, by which the checksum is recognised, and of the schema; some of the others.
    places = [*range(8 * 90), *range(8 * schema, 8 * (schema + 12))]
    for bit in places + random.Random(0).sample(range(8 * len(content)), 500):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedStepError):
            store.manifest(path.parent.name)


def test_a_folder_without_a_manifest_is_set_aside_and_that_is_said(done: Any, finished: Any) -> None:
    path = step_folder(done, finished, 1) / "manifest.json"
    path.unlink()
    path.mkdir()
    shutil.rmtree(done.out)
    assert f"{path} is damaged: it is a folder, not a plain file" in done.succeed(done.tiny("--quiet")).stderr
    assert done.outcome() == finished.outcome()


def test_a_plan_of_a_sweep_reads_the_manifests_with_their_checksums(commands: Any, swept: Any) -> None:
    shutil.copytree(swept.out, commands.out)
    shutil.copytree(swept.steps, commands.steps)
    plan = [*commands.sweep("finetune"), "--plan", "--json"]
    before = json.loads(commands.succeed(plan).stdout)
    path = commands.steps / "steps" / before["steps"][-1]["key"] / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"iterations": 2', '"iterations": 3', 1))
    assert path.read_text() != text
    (step,) = [step for step in json.loads(commands.succeed(plan).stdout)["steps"] if step["state"] == "damaged"]
    assert step["key"] == path.parent.name and str(path) in step["reason"]


def test_a_disk_that_cannot_be_read_is_no_damage(done: Any, finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = done.steps / "work" / "0" / "checkpoint.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, {"iteration": 1})
    evaluation = evaluation_of(done, finished, 1)
    right = os.open

    def fail(name: Any, *args: int, **more: Any) -> int:
        if name in (path, evaluation, evaluation.with_name("manifest.json")):
            raise OSError(errno.EIO, "Input/output error")
        return right(name, *args, **more)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(StoreError, match=re.escape(str(path))):
        read_checkpoint(path)
    shutil.rmtree(done.out)
    done.refused(1, done.tiny(), str(evaluation), "Input/output error")
    assert path.is_file() and not list(done.steps.glob("**/*.damaged-*"))
