"""Two processes of one step, of which one has a fault, is interrupted, or was started by somebody else."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TWO = ("--devices", "2", "--device", "cpu")
POISON = "t003"  # an image that most epochs have in one of their two batches
PLANTED = """
import os
from cispbench.methods.finetune import FineTune
from cispbench.splits.errors import MethodError

class Poisoned(FineTune):
    name = "poisoned"

    def losses(self, batch, output, previous, context):
        terms = super().losses(batch, output, previous, context)
        spoilt = "POISON" in batch.ids and context.step == 0
        return {name: term * float("nan") if spoilt else term for name, term in terms.items()}

class Choosy(FineTune):
    name = "choosy"

    def losses(self, batch, output, previous, context):
        if os.environ.get("RANK") == "1":
            raise MethodError("the second process will have none of it.", hint="Ask the first.")
        return super().losses(batch, output, previous, context)
""".replace("POISON", POISON)

pytestmark = pytest.mark.slow


@pytest.fixture
def plugins(tmp_path: Path) -> dict[str, str]:
    """Variables of a process that finds the planted methods as an installed package's."""
    folder = tmp_path / "plugins"
    (folder / "planted-1.dist-info").mkdir(parents=True)
    (folder / "planted_methods.py").write_text(PLANTED)
    (folder / "planted-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n")
    lines = ["[cispbench.methods]", "poisoned = planted_methods:Poisoned", "choosy = planted_methods:Choosy", ""]
    (folder / "planted-1.dist-info" / "entry_points.txt").write_text("\n".join(lines))
    return {"PYTHONPATH": str(folder)}


def apart(commands: Any, name: str) -> Any:
    """Return commands on the same data with stores of their own."""
    home = commands.home / name
    home.mkdir()
    return type(commands)(home, commands.data)


def first_record(commands: Any) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(commands.records()[0].read_text())
    return record


def test_a_loss_that_is_no_number_in_one_process_is_skipped_in_both(commands: Any, plugins: dict[str, str]) -> None:
    ends = {}
    for name, more in (("one", ()), ("two", TWO)):
        there = apart(commands, name)
        ends[there] = there.start(there.tiny(*more, method="poisoned", iterations=(12, 1)), **plugins)
    for there, process in ends.items():
        assert process.wait(200) == 0, there.read()
    one, two = (first_record(there) for there in ends)
    assert (one["execution"]["devices"], two["execution"]["devices"]) == (1, 2)
    assert one["skipped_steps"] == two["skipped_steps"] > 0
    assert one["losses"]["iterations"] == two["losses"]["iterations"]
    assert len(one["losses"]["iterations"]) == 12 - one["skipped_steps"]
    for ours, theirs in zip(*(record["losses"]["terms"]["cross_entropy"] for record in (one, two)), strict=True):
        assert math.isclose(ours, theirs, rel_tol=1e-4)


def test_too_many_of_them_end_both_and_name_the_images_of_the_one(commands: Any, plugins: dict[str, str]) -> None:
    process = commands.start(commands.tiny(*TWO, method="poisoned", iterations=(30, 1)), **plugins)
    assert process.wait(200) == 1
    out, error = commands.read()
    assert out == "" and error.count("Error: ") == 1 and "Traceback" not in error
    assert "the loss cross_entropy is not a finite number" in error and "6 of 30 iterations were skipped" in error
    told = error.partition("the images of the last one: ")[2].partition(")")[0].split(", ")
    assert POISON in told and len(told) == 2  # a half of the batch


def test_an_error_of_one_process_ends_the_other_and_is_told_once(commands: Any, plugins: dict[str, str]) -> None:
    process = commands.start(commands.tiny(*TWO, method="choosy"), **plugins)
    assert process.wait(200) == 1
    out, error = commands.read()
    assert out == "" and "Traceback" not in error
    assert error.count("Error: the second process will have none of it. Ask the first.") == error.count("Error: ") == 1
    assert not commands.records() and not list(commands.steps.glob("steps/*"))


def test_ctrl_c_ends_both_and_a_single_process_goes_on(commands: Any) -> None:
    process = commands.start(commands.tiny(*TWO, method="finetune", iterations=(100_000, 1)))
    try:
        commands.wait_for(process, "step 0/1")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(60) == 1
    finally:
        process.kill()
    out, error = commands.read()
    assert out == "" and "the same command goes on from there" in error
    assert "Traceback" not in error and "Error: " not in error
    commands.succeed(commands.tiny(method="finetune"))
    assert len(commands.records()) == 2


def test_torchrun_starts_the_processes_as_well(commands: Any) -> None:
    words = [*commands.tiny("--json", method="finetune"), "--device", "cpu"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cispbench.harness.cli"]
    done = subprocess.run(
        [sys.executable, *torchrun, *words], cwd=commands.home, capture_output=True, text=True, timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trained"] == 2
    assert first_record(commands)["execution"]["devices"] == 2


def test_both_processes_start_anew_after_a_damaged_checkpoint(commands: Any) -> None:
    calm = apart(commands, "calm")
    assert calm.start(words := calm.tiny(*TWO, method="finetune"), name="calm").wait(200) == 0, calm.read("calm")
    path = commands.steps / "work" / first_record(calm)["key"] / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    assert commands.start([*words, *commands.places(), "--quiet"]).wait(200) == 0, commands.read()
    assert commands.read()[1].count(f"the checkpoint {path} is damaged") == 1
    assert path.with_name("checkpoint.pt.damaged-0").read_bytes() == b"damaged"
    assert commands.outcome() == calm.outcome()
