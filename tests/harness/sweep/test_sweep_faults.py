"""Sweeps on full, read-only and shared disks, on damaged files and under a wrong clock."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from cispbench.harness.commands.sweep_status import StepInWork, status_of
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.machine.locks import run_lock
from cispbench.harness.machine.progress import PlainView
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.runs.plan import PlannedWeights, plan_run
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.sweep.matrix import SweepRequest
from cispbench.harness.sweep.worker import StepJob, do_step
from cispbench.methods.finetune import FineTune
from cispbench.results.record import StepRecord
from cispbench.splits.errors import RunError, WeightsError
from cispbench.splits.settings import parse_setting

METHODS, SETTING = "finetune,mib", "overlapped-10-5"


def test_a_full_disk_fails_the_steps_it_hits_and_publishes_nothing(
    commands: Any, swept: Any, disk: Path, fill: Callable[[int], Path]
) -> None:
    commands.steps = disk / "steps"
    filler = fill(1_200_000)  # the base fits, what comes after it does not
    result = commands.invoke(commands.sweep(METHODS, "--json"))
    assert result.exit_code == 1
    failed = json.loads(result.stdout)["failed"]
    full = [entry for entry in failed if "the disk is full" in entry["reason"]]
    assert full
    assert all("Free some space" in entry["reason"] for entry in full)
    assert all(entry in full or entry["reason"].startswith("not tried: ") for entry in failed)
    finished = json.loads(result.stdout)["finished"]
    assert finished + len(failed) == 5
    assert len(list(commands.steps.glob("steps/*"))) == finished
    assert commands.leftovers() == []
    filler.unlink()
    commands.succeed(commands.sweep(METHODS))
    assert commands.outcomes() == swept.outcomes()
    assert commands.leftovers() == []


@pytest.mark.parametrize("which", ["out", "steps"])
def test_a_read_only_disk_is_said_before_a_process_is_started(
    commands: Any, disk: Path, freeze: Callable[[], None], which: str
) -> None:
    freeze()
    setattr(commands, which, disk / "folder")
    result = commands.invoke(commands.sweep(METHODS))
    assert result.exit_code == 1
    assert "read-only" in result.stderr
    assert str(disk / "folder") in result.stderr
    assert "start " not in result.stderr


def test_a_finished_sweep_can_be_looked_at_on_a_read_only_disk(
    commands: Any, swept: Any, disk: Path, freeze: Callable[[], None]
) -> None:
    shutil.copytree(swept.out, disk / "out")
    shutil.copytree(swept.steps, disk / "steps")
    freeze()
    commands.out, commands.steps = disk / "out", disk / "steps"
    assert json.loads(commands.succeed(commands.sweep(METHODS, "--plan", "--json")).stdout)["states"] == {"done": 5}
    assert "| mib" in commands.succeed(commands.sweep(METHODS)).stdout
    assert "2 of 2 runs finished" in commands.succeed(["status", *commands.places()]).stdout


def test_two_sweeps_on_one_store_train_each_step_once(commands: Any, swept: Any) -> None:
    sweep = commands.sweep(METHODS, "--json")
    other = commands.start(commands.sweep(METHODS))
    commands.wait_for(other, "start ")
    commands.succeed(sweep)
    assert other.wait(250) == 0, commands.read()
    assert commands.outcomes() == swept.outcomes()
    assert commands.leftovers() == []
    # Every step was trained by one of the two: a log says so, and its numbers are in the manifest of that training.
    logs = [path.read_text() for path in (commands.steps / "logs").glob("*.log")]
    assert len(logs) == 5
    assert [text.count("\nstep ") + text.startswith("step ") for text in logs] == [1] * 5


@contextmanager
def held_elsewhere(commands: Any, key: str, until: Callable[[], bool]) -> Iterator[None]:
    """Hold a step, as a process of another sweep would, until something has happened."""
    begun = threading.Event()

    def hold() -> None:
        with run_lock(StepStore(commands.steps).work(key), "training elsewhere", 0):
            begun.set()
            end = time.monotonic() + 100
            while time.monotonic() < end and not until():
                time.sleep(0.05)

    holder = threading.Thread(target=hold)
    holder.start()
    assert begun.wait(10)
    yield
    holder.join()


@pytest.mark.parametrize("seen", [True, False])
def test_what_another_process_trains_is_left_to_it_while_there_is_other_work(
    commands: Any, swept: Any, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    (key,) = [record["key"] for record in read(swept.out) if (record["method"]["name"], record["step"]) == ("mib", 1)]
    told: list[StepInWork] = []

    def others_are_done() -> bool:
        if not list(commands.out.glob("runs/*/*/finetune/*/step-2.json")):
            return False
        told.extend(status_of(commands.out, commands.steps, SweepRequest()).running)
        return True

    if not seen:  # the sweep looks a moment before the other one begins, and its worker finds out
        monkeypatch.setattr(StepStore, "in_work", lambda self, key: None)
    with held_elsewhere(commands, key, others_are_done):
        lines = commands.succeed([*commands.sweep(METHODS), "--workers", "1"]).stderr.splitlines()
    mine, done = f"mib {SETTING} seed 0 step 1/2", f"done    finetune {SETTING} seed 0 step 2/2"
    waits = f"{mine if seen else f'waits   {mine}'}{': ' if seen else '  '}another process (pid {os.getpid()}, since "
    places = [next(n for n, line in enumerate(lines) if line.startswith(text)) for text in (waits, done)]
    assert places == sorted(places)
    assert [line.startswith(f"start   {mine}") for line in lines[: places[1]]].count(True) == (0 if seen else 1)
    assert [(entry.key, entry.what) for entry in told if entry.key == key[:10]] == [(key[:10], "training elsewhere")]
    assert commands.outcomes() == swept.outcomes()
    assert commands.leftovers() == []


def test_a_step_whose_damaged_base_another_process_has_waits_for_it_without_hurry(commands: Any, swept: Any) -> None:
    keys = {(record["method"]["name"], record["step"]): record["key"] for record in read(swept.out)}
    shutil.copytree(swept.steps, commands.steps)
    shutil.copytree(swept.out, commands.out)
    for path in commands.out.glob("runs/*/*/*/*/step-[12].json"):
        path.unlink()
    for (_, step), key in keys.items():
        if step:
            shutil.rmtree(commands.steps / "steps" / key)
    base = commands.steps / "steps" / keys["mib", 0] / "weights.safetensors"
    content = bytearray(base.read_bytes())
    content[-100] ^= 1  # only the checksum sees it, when a step that builds on it reads it
    base.write_bytes(content)
    began = time.monotonic()
    with held_elsewhere(commands, keys["mib", 0], lambda: time.monotonic() - began > 6):
        lines = commands.succeed([*commands.sweep("mib"), "--workers", "1"]).stderr.splitlines()
    kinds = [line.split()[0] for line in lines if line.startswith(("start ", "waits ", "done "))]
    assert kinds == ["start", "waits", "start", "done", "start", "done"]
    mine = {place: value for place, value in swept.outcomes().items() if place[0] == "mib"}
    assert {place: value for place, value in commands.outcomes().items() if place[0] == "mib"} == mine


@pytest.mark.parametrize("damage", ["cut", "flipped", "manifest"])
def test_a_damaged_step_that_is_needed_is_named_and_trained_anew(commands: Any, swept: Any, damage: str) -> None:
    shutil.copytree(swept.out, commands.out)
    shutil.copytree(swept.steps, commands.steps)
    keys = {(record["method"]["name"], record["step"]): record["key"] for record in read(commands.out)}
    (last,) = commands.out.glob("runs/*/*/mib/*/step-*2.json")
    last.unlink()
    shutil.rmtree(commands.steps / "steps" / keys["mib", 2])
    before = keys["mib", 1]  # what the lost step is trained from
    path = commands.steps / "steps" / before / ("manifest.json" if damage == "manifest" else "weights.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-100] ^= 1
    path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    result = commands.succeed(commands.sweep(METHODS, "--quiet"))
    assert commands.outcomes() == swept.outcomes()
    assert [path.name for path in commands.steps.glob("steps/*.damaged-*")] == [f"{before}.damaged-0"]
    assert f"{path} is damaged" in result.stderr


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in out.glob("runs/*/*/*/*/step-*.json")]


@pytest.mark.parametrize("days", [-4000, 4000])
def test_no_clock_decides_anything(commands: Any, swept: Any, days: int) -> None:
    """Files and records of a machine whose clock is wrong by years are as good as any."""
    shutil.copytree(swept.out, commands.out)
    shutil.copytree(swept.steps, commands.steps)
    then = datetime.now(UTC) + timedelta(days=days)
    for path in commands.out.glob("runs/*/*/*/*/step-*.json"):
        record = StepRecord.from_json(path.read_bytes(), str(path))
        path.write_bytes(replace(record, created=then.isoformat(timespec="seconds")).to_json())
    for place in (commands.out, commands.steps):
        for path in place.rglob("*"):
            os.utime(path, (then.timestamp(), then.timestamp()))
    again = json.loads(commands.succeed(commands.sweep(METHODS, "--json")).stdout)
    assert (again["finished"], again["failed"]) == (0, [])
    newest = max(commands.out.glob("runs/*/*/mib/*/step-*.json"))
    newest.unlink()
    again = json.loads(commands.succeed(commands.sweep(METHODS, "--json")).stdout)
    assert (again["finished"], again["failed"]) == (1, [])
    assert commands.outcomes() == swept.outcomes()
    assert "2 of 2 runs finished" in commands.succeed(["status", *commands.places()]).stdout


def test_a_method_that_no_other_process_can_have_fails_and_says_so(
    commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(job: object) -> bytes:
        raise pickle.PicklingError("Can't pickle <lambda>")

    monkeypatch.setattr("cispbench.harness.sweep.local.pickle.dumps", refuse)
    result = commands.invoke(commands.sweep(METHODS, "--json"))
    assert result.exit_code == 1
    reasons = [entry["reason"] for entry in json.loads(result.stdout)["failed"]]
    assert len(reasons) == 5
    assert all("cannot be sent to a process" in reason or reason.startswith("not tried: ") for reason in reasons)


@pytest.fixture
def job(tmp_path: Path) -> StepJob:
    setting = parse_setting("overlapped-15-5")
    plan = plan_run(
        setting=setting, method=FineTune(), recipe=load_recipe(FineTune, setting, "quick", "deeplabv3-resnet18", []),
        profile="quick", seed=0, source=SyntheticSource("voc", train=40, val=4, size=24),
        weights=PlannedWeights(str(tmp_path / "net.pth"), True, "0" * 64),
    )  # fmt: skip
    recipe = replace(plan.recipe, weights="net.pth")
    return StepJob(
        key=plan.steps[0].key, step=0, runs=(replace(plan, recipe=recipe),), out=tmp_path / "out",
        steps_dir=tmp_path / "steps", log=None, device="cpu", threads=torch.get_num_threads(), loaders=0,
    )  # fmt: skip


def test_weights_that_have_changed_since_the_plan_are_refused(job: StepJob, tmp_path: Path) -> None:
    encoder = build_model("deeplabv3-resnet18", 64).encoder
    torch.save({**encoder.net.state_dict()}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"net.pth have changed since the run was planned.* and was 0000"):
        do_step(job, PlainView(io.StringIO()))
    assert not list(tmp_path.glob("*/steps/*")) and not list(tmp_path.glob("out/runs/*"))


def test_code_that_has_changed_since_the_plan_is_refused(job: StepJob, tmp_path: Path) -> None:
    plan = job.runs[0]
    training, models, method = plan.versions
    old = replace(job, runs=(replace(plan, versions=(training, models, method - 1)),))
    with pytest.raises(RunError, match="the code has changed since the run was planned"):
        do_step(old, PlainView(io.StringIO()))
    assert not (tmp_path / "steps").exists()
