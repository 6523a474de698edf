"""Sweeps that are executed: each step once, failures that stay where they are, and kills that change nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.machine.locks import current_holder

SETTING = "overlapped-10-5"
PLANTED = """
import os, signal
from cispbench.methods.finetune import FineTune

class NotANumber(FineTune):
    name = "not_a_number"

    def losses(self, batch, output, previous, context):
        terms = super().losses(batch, output, previous, context)
        return {name: term * float("nan") if context.step == 1 else term for name, term in terms.items()}

class Killed(FineTune):
    name = "killed"

    def initialise(self, context):
        if context.step == 1:
            os.kill(os.getpid(), signal.SIGKILL)

class Clumsy(FineTune):
    name = "clumsy"

    def initialise(self, context):
        if context.step == 2:
            raise ValueError("a slip")
"""


def test_every_step_is_trained_once_and_recorded_for_every_run(swept: Any) -> None:
    assert set(swept.outcomes()) == {(method, SETTING, 0, step) for method in ("finetune", "mib") for step in range(3)}
    assert len(list((swept.steps / "steps").iterdir())) == 5
    assert swept.leftovers() == []
    lines = swept.result.stderr.splitlines()
    assert sum(line.startswith("start ") for line in lines) == 5
    assert sum(line.startswith("done ") for line in lines) == 5
    assert any(line.startswith("done    2 methods overlapped-10-5 seed 0 step 0/2  old") for line in lines)
    assert "5 steps finished now." in swept.result.stdout
    assert "| mib " in swept.result.stdout


def test_the_same_command_again_trains_nothing_and_the_plan_says_so(swept: Any) -> None:
    again = swept.succeed(swept.sweep("finetune,mib", "--json"))
    document = json.loads(again.stdout)
    assert (document["finished"], document["failed"], len(document["runs"])) == (0, [], 2)
    plan = json.loads(swept.succeed(swept.sweep("finetune,mib", "--plan", "--json")).stdout)
    assert plan["states"] == {"done": 5}
    assert plan["totals"]["left"] == {"steps": 0, "images": 0, "iterations": 0}
    assert plan["estimate"]["seconds"] == 0


def test_the_plan_tells_what_is_stale_and_why_and_what_it_will_cost(swept: Any) -> None:
    text = swept.succeed(swept.sweep("finetune,mib", "--plan", "--set", "later.momentum=0.5")).stdout
    assert text.count("stale: later.momentum is 0.5, was 0.9") == 4
    assert "1 trained, 4 stale" in text
    plan = json.loads(swept.succeed(swept.sweep("mib", "--plan", "--json", "--set", "later.momentum=0.5")).stdout)
    assert plan["estimate"]["steps_without_measured_seconds"] == 0
    assert plan["estimate"]["seconds"] > 0
    other = json.loads(swept.succeed(swept.sweep("plop", "--plan", "--json")).stdout)
    assert other["states"] == {"trained": 1, "missing": 2}
    assert other["estimate"]["seconds"] is None


def test_the_plan_names_changes_of_a_key_that_no_recipe_holds(swept: Any) -> None:
    plan = json.loads(swept.succeed(swept.sweep("finetune", "--plan", "--json", "--micro-batch", "2")).stdout)
    assert plan["states"] == {"stale": 3}
    assert all(re.fullmatch(r"the number of micro-batches is \d, was 1", step["reason"])
               for step in plan["steps"])  # fmt: skip
    plan = json.loads(swept.succeed(swept.sweep("finetune", "--plan", "--json", "--no-share")).stdout)
    assert plan["states"] == {"stale": 3}
    assert all("--no-share was given or left out" in step["reason"] for step in plan["steps"])
    plan = json.loads(swept.succeed([*swept.sweep("finetune", "--plan", "--json"), "--seeds", "1"]).stdout)
    assert plan["states"] == {"missing": 3}


def test_a_damaged_step_is_seen_by_the_plan(swept: Any) -> None:
    key = next(path.name for path in (swept.steps / "steps").iterdir())
    manifest = swept.steps / "steps" / key / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content[:-40])
    try:
        plan = json.loads(swept.succeed(swept.sweep("finetune,mib", "--plan", "--json")).stdout)
    finally:
        manifest.write_bytes(content)
    (damaged,) = [step for step in plan["steps"] if step["state"] == "damaged"]
    assert damaged["key"] == key
    assert str(manifest) in damaged["reason"]


def test_shared_and_unshared_runs_have_the_same_scores_and_weights(commands: Any, swept: Any) -> None:
    commands.succeed(commands.sweep("finetune,mib", "--no-share"))
    assert len(list((commands.steps / "steps").iterdir())) == 6
    assert commands.outcomes() == swept.outcomes()


def test_a_sweep_divides_batches_as_a_run_does(commands: Any, swept: Any) -> None:
    result = commands.succeed(commands.sweep("finetune", "--micro-batch", "2"))
    assert "--micro-batch 2: the batch norms of deeplabv3-tiny see parts of 2 at once" in result.stderr
    records = [json.loads(path.read_text()) for path in commands.out.glob("runs/*/*/*/*/step-*.json")]
    assert [record["execution"]["micro_batch"] for record in records] == [2, 2, 2]
    whole = {json.loads(path.read_text())["key"] for path in swept.out.glob("runs/*/*/*/*/step-*.json")}
    assert whole.isdisjoint(record["key"] for record in records)
    recipe = commands.tiny("--micro-batch", "2", method="finetune")[5:]
    run = commands.succeed(["run", "--method", "finetune", "--setting", "overlapped-10-5", *recipe])
    assert "finished" in run.output, run.output


def test_a_part_that_is_too_small_for_the_network_is_refused_by_the_plan(commands: Any) -> None:
    for more in ((), ("--plan",)):
        commands.refused(2, commands.sweep("finetune", "--micro-batch", "1", *more), "trains on 1 image at once",
                         "--micro-batch 2")  # fmt: skip
    assert not commands.out.exists()


def test_status_tells_from_the_stores_alone(swept: Any) -> None:
    status = json.loads(swept.succeed(["status", *swept.places(), "--json"]).stdout)
    assert {(run["method"], run["recorded"], run["steps"]) for run in status["runs"]} == {
        ("finetune", 3, 3), ("mib", 3, 3),
    }  # fmt: skip
    assert (status["published"], status["unrecorded"], status["running"]) == (5, 0, [])
    text = swept.succeed(["status", *swept.places(), "--methods", "mi*", "--settings", "overlapped-10-*"]).stdout
    assert "1 of 1 runs finished" in text
    assert "0 of 0 runs" in swept.succeed(["status", *swept.places(), "--settings", "paper-table"]).stdout


@pytest.fixture
def plugins(tmp_path: Path) -> dict[str, str]:
    """Variables of a process that finds the planted methods as an installed package's."""
    folder = tmp_path / "plugins"
    (folder / "planted-1.dist-info").mkdir(parents=True)
    (folder / "planted_methods.py").write_text(PLANTED)
    (folder / "planted-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n")
    classes = {"not_a_number": "NotANumber", "killed": "Killed", "clumsy": "Clumsy"}
    lines = [f"{name} = planted_methods:{cls}" for name, cls in classes.items()]
    entry_points = "\n".join(["[cispbench.methods]", *lines, ""])
    (folder / "planted-1.dist-info" / "entry_points.txt").write_text(entry_points)
    return {"PYTHONPATH": str(folder)}


def test_a_failing_step_fails_what_builds_on_it_and_nothing_else(
    commands: Any, swept: Any, plugins: dict[str, str]
) -> None:
    process = commands.start(commands.sweep("not_a_number,killed,clumsy,mib", "--json"), **plugins)
    assert process.wait(200) == 1, commands.read()
    out, err = commands.read()
    failed = {entry["step"].split()[0] + entry["step"][-4:-2]: entry for entry in json.loads(out)["failed"]}
    assert set(failed) == {"not_a_number 1", "not_a_number 2", "killed 1", "killed 2", "clumsy 2"}
    assert "the loss cross_entropy is not a finite number" in failed["not_a_number 1"]["reason"]
    assert "killed by SIGKILL" in failed["killed 1"]["reason"]
    assert failed["clumsy 2"]["reason"] == "ValueError: a slip"
    assert "Traceback" in Path(failed["clumsy 2"]["log"]).read_text()
    for name in ("not_a_number", "killed"):
        assert failed[f"{name} 2"]["reason"].startswith(f"not tried: {name} {SETTING} seed 0 step 1/2 failed")
        assert failed[f"{name} 2"]["log"] is None
    assert "Error: 5 steps failed or not tried:" in err
    assert "Traceback" not in err
    undisturbed = swept.outcomes()
    assert {place: value for place, value in commands.outcomes().items() if place[0] == "mib"} == {
        place: value for place, value in undisturbed.items() if place[0] == "mib"
    }
    assert [run["method"] for run in json.loads(out)["runs"]] == ["mib"]


def holders(steps: Path) -> Iterator[tuple[str, int]]:
    for folder in (steps / "work").glob("*"):
        holder = current_holder(folder)
        if holder is not None:
            yield folder.name, holder.pid


def a_worker(commands: Any, process: Any = None) -> tuple[str, int]:
    """Return the key of a step that is trained and the id of the process at it, as soon as there is one."""
    end = time.monotonic() + 120
    while not (found := list(holders(commands.steps))):
        assert process is None or process.poll() is None, commands.read()
        assert time.monotonic() < end
        time.sleep(0.005)
    return found[0]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_killed_workers_and_killed_sweeps_change_nothing(commands: Any, swept: Any) -> None:
    sweep = commands.sweep("finetune,mib")
    killer = threading.Thread(target=lambda: os.kill(a_worker(commands)[1], signal.SIGKILL))
    killer.start()
    killed = commands.invoke(sweep)
    killer.join()
    assert killed.exit_code == 1
    assert "killed by SIGKILL" in killed.stderr

    process = commands.start(sweep)
    key, worker = a_worker(commands, process)
    os.kill(worker, signal.SIGSTOP)  # or it might be through with its step before it notices
    process.kill()
    process.wait()
    os.kill(worker, signal.SIGCONT)
    end = time.monotonic() + 20
    while not gone(worker):
        assert time.monotonic() < end, "a worker has outlived its sweep"
        time.sleep(0.05)
    assert not (commands.steps / "steps" / key).exists()

    process = commands.start(sweep)
    a_worker(commands, process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C on a terminal does
    assert process.wait(60) == 1, commands.read()
    out, err = commands.read()
    assert out == ""
    assert "the same command goes on from there" in err
    assert "Traceback" not in err

    commands.succeed(sweep)
    assert commands.outcomes() == swept.outcomes()
    assert commands.leftovers() == []
