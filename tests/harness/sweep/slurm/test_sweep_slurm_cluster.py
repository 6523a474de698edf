"""Sweeps on a real SLURM cluster, the one of ``tests/slurm/start``: nodes are killed there, so on no other.

Without that cluster they are skipped; where CISPBENCH_SLURM names its folder they fail.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

START = Path(__file__).parents[3] / "slurm" / "start"
FOLDER = Path(os.environ.get("CISPBENCH_SLURM") or "/run/cispbench-slurm")
SETTING = "overlapped-10-5"
CLUSTER = """
partition: dev
time_limit_min: 10
gpus: 1
cpus_per_task: 1
memory_gb: 2
array_parallelism: 2
signal_delay_s: 30
poll_s: 1
"""
# Methods that fail, or that come to a gate: `open-<seed>` in the folder GATES lets them through, and `reached-<seed>`
# and `warned-<seed>` tell that they are there, and that a signal has reached them there.
PLANTED = """
import os, signal, time
from pathlib import Path
import torch
from cispbench.harness.machine.seeds import derive_seed
from cispbench.methods.finetune import FineTune

def seed_of(context):
    return next(seed for seed in range(9) if torch.initial_seed() == derive_seed(seed, "growth", context.step))

class Brittle(FineTune):
    name = "brittle"

    def initialise(self, context):
        if context.step == 1 and seed_of(context) == 1:
            raise ValueError("a slip")

class Gated(FineTune):
    name = "gated"
    calls = seed = 0

    def initialise(self, context):
        if context.step == 1:
            self.seed = seed_of(context)

    def losses(self, batch, output, previous, context):
        self.calls += context.step == 1
        if self.calls == 3 and not gate("open", self.seed).exists():
            self.wait()
        return super().losses(batch, output, previous, context)

    def wait(self):
        handler = signal.getsignal(signal.SIGUSR2)

        def heard(number, frame):
            handler(number, frame)
            gate("warned", self.seed).touch()

        signal.signal(signal.SIGUSR2, heard)
        gate("reached", self.seed).touch()
        while not gate("open", self.seed).exists():
            time.sleep(0.02)

def gate(word, seed):
    return Path(os.environ["GATES"]) / f"{word}-{seed}"
"""


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Point SLURM's commands at the tests' cluster, where it is up."""
    asked_for = "CISPBENCH_SLURM" in os.environ
    unmet = pytest.fail if asked_for else pytest.skip
    if shutil.which("sbatch") is None:
        unmet("SLURM is not installed (apt-get install slurm-wlm munge)")
    if find_spec("submitit") is None:
        unmet("submitit is not installed (pip install 'cispbench[slurm]')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(FOLDER / "slurm.conf"))
        there = (FOLDER / "slurm.conf").exists()
        if not there or "is UP" not in subprocess.run(["scontrol", "ping"], capture_output=True, text=True).stdout:
            unmet(f"the tests' SLURM cluster is not running (start it as root: {START})")
        yield
        subprocess.run(["scancel", "--full", "--user", str(os.getuid())], check=False)


@pytest.fixture
def planted(tmp_path: Path) -> dict[str, str]:
    """Variables of processes that find the planted methods as an installed package's, and their gates."""
    folder = tmp_path / "plugins"
    (folder / "planted-1.dist-info").mkdir(parents=True)
    (folder / "planted_slurm.py").write_text(PLANTED)
    (folder / "planted-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n")
    lines = ["[cispbench.methods]", "brittle = planted_slurm:Brittle", "gated = planted_slurm:Gated", ""]
    (folder / "planted-1.dist-info" / "entry_points.txt").write_text("\n".join(lines))
    (tmp_path / "gates").mkdir()
    return {"PYTHONPATH": str(folder), "GATES": str(tmp_path / "gates")}


def words(commands: Any, *more: str) -> list[str]:
    """Return a sweep of six runs with the recipe of the tiny run."""
    _, _, _, _, _, *rest = commands.tiny(method="finetune", iterations=(4, 6))
    methods = ["--methods", "finetune,brittle,gated"]
    return ["sweep", *methods, "--settings", SETTING, "--seeds", "0,1", "--device", "cpu", *rest, *more]


def outcome(commands: Any) -> dict[tuple[str, int, int], tuple[Any, str]]:
    """Return the confusion matrix and the digest of the weights of every record."""
    found = {}
    for path in commands.out.glob("runs/*/*/*/*/step-*.json"):
        record = json.loads(path.read_text())
        weights = (commands.steps / "steps" / record["key"] / "weights.safetensors").read_bytes()
        place = (record["method"]["name"], record["seed"], record["step"])
        found[place] = (record["confusion"], hashlib.sha256(weights).hexdigest())
    return found


def failures(commands: Any) -> dict[str, str]:
    """Return why each step failed, as the lines of the sweep tell."""
    return dict(re.findall(r"^failed  (\S.*?)  (.*?)(?: \(log: .*\))?$", commands.read()[1], re.MULTILINE))


def wait_until(what: str, holds: Callable[[], Any], process: Any, commands: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None and time.monotonic() < end, (what, commands.read())
        time.sleep(0.05)


def note(commands: Any) -> dict[str, Any]:
    """Return the note of the one submission there is."""
    (path,) = commands.steps.glob("slurm/*/note.json")
    return json.loads(path.read_text())


def job_of(commands: Any, method: str, seed: int) -> tuple[str, str]:
    """Return the job of a run's later steps, and the node it runs on ("" while it waits)."""
    submitted, what = note(commands), f"{method} {SETTING} seed {seed} step 1/2"
    (index,) = [index for index, task in enumerate(submitted["tasks"]) if task[0]["what"] == what]
    job = f"{submitted['job']}_{index}"
    state, node = ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%N").strip().split("|")
    return job, node if state == "RUNNING" else ""


def kill_node(node: str) -> None:
    """Kill the daemon of a node and everything of its jobs."""
    victims = {int((FOLDER / f"slurmd.{node}.pid").read_text())}
    marks = {f"SLURM_CONF={FOLDER}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode()}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = Path("/proc") / (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if marks <= set((folder / "environ").read_bytes().split(b"\0")):
                victims.add(int(folder.name))
                if b"slurmstepd" in (parent / "cmdline").read_bytes():
                    victims.add(int(parent.name))
        except OSError:
            continue  # it has ended since
    assert len(victims) >= 5  # the daemon; batch script and step, with the daemons of each
    for victim in victims:
        with suppress(ProcessLookupError):  # a process may end by itself when another victim is gone
            os.kill(victim, signal.SIGKILL)


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
def test_a_sweep_survives_a_failure_a_requeue_a_dead_node_and_its_own_death(
    commands: Any, voc: Path, planted: dict[str, str], tmp_path: Path
) -> None:
    gates = Path(planted["GATES"])
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    sweep = words(commands, "--slurm", str(tmp_path / "cluster.yaml"))
    process = commands.start(sweep, name="first", **planted)
    wait_until("a run at the gate", (gates / "reached-0").exists, process, commands)
    process.kill()
    process.wait()

    process = commands.start(sweep, **planted)
    commands.wait_for(process, "attached to")
    ask("scancel", "--signal=USR2", job_of(commands, "gated", 0)[0])
    wait_until("the signal", (gates / "warned-0").exists, process, commands)
    (gates / "open-0").touch()

    wait_until("the other run at the gate", (gates / "reached-1").exists, process, commands)
    node = job_of(commands, "gated", 1)[1]
    kill_node(node)
    (gates / "open-1").touch()
    wait_until("the end of its job", lambda: job_of(commands, "gated", 1)[1] != node, process, commands)
    subprocess.run([str(START)], check=True, timeout=90)
    assert process.wait(120) == 1, commands.read()

    err = commands.read()[1]
    assert err.count("waits   gated") == 2, err
    assert "submitted" not in err
    said = [json.loads(path.read_text()) for path in commands.steps.glob("slurm/said/*.json")]
    assert sorted(entry["starts"] for entry in said if entry["state"] == "done")[-4:] == [2, 2, 2, 2]
    broken = failures(commands)
    assert set(broken) == {f"brittle {SETTING} seed 1 step {step}/2" for step in (1, 2)}

    local = type(commands)(tmp_path / "local", voc)
    local.home.mkdir()
    assert local.start(words(local, "--workers", "2"), **planted).wait(200) == 1, local.read()
    assert failures(local) == broken
    assert outcome(local) == outcome(commands)
    assert set(outcome(local)) >= {("gated", seed, step) for seed in (0, 1) for step in range(3)}
    assert len(outcome(local)) == 16
