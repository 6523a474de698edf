"""Processes that meet, are interrupted or killed: the same command goes on, and ends as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

LONG = (60, 40)
# The command line with a checkpoint after every iteration that is logged, and death at a chosen write to the disk:
# of all moments the most delicate one, for what was written lies there under its temporary name.
DRIVER = """
import os, signal
from cispbench.harness.training import monitor
from cispbench.harness.cli import main

monitor.CHECKPOINT_SECONDS, monitor.CHECKPOINT_SHARE = 0.0, 1e9
left = [int(os.environ.get("DIE_AT_WRITE", "-1"))]
sync = os.fsync

def die_or_sync(descriptor):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)

os.fsync = die_or_sync
main()
"""


@pytest.fixture(scope="session")
def unbroken(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcome of the longer run without a fault."""
    import torch

    commands, threads = type(finished)(tmp_path_factory.mktemp("unbroken"), finished.data), torch.get_num_threads()
    torch.set_num_threads(1)
    commands.succeed(commands.tiny(iterations=LONG))
    torch.set_num_threads(threads)
    return commands.outcome()


def end(process: Any, number: int = signal.SIGKILL, whole_group: bool = False) -> int:
    """Send the signal and return the exit code."""
    (os.killpg if whole_group else os.kill)(process.pid, number)
    return int(process.wait(60))


def interrupted(commands: Any, name: str = "process") -> None:
    out, err = commands.read(name)
    assert out == ""
    assert "Interrupted" in err
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    assert "KeyboardInterrupt" not in err


def test_two_processes_at_once_train_each_step_once(commands: Any, unbroken: Any) -> None:
    words = commands.tiny("--json", iterations=LONG)
    other = commands.start(words)
    while not list(commands.steps.glob("work/*/lock.holder.json")):
        assert other.poll() is None, commands.read()
        time.sleep(0.02)
    second = json.loads(commands.succeed(words).stdout)
    assert other.wait(120) == 0, commands.read()
    first = json.loads(commands.read()[0])
    assert first["trained"] + second["trained"] == 2
    assert first["steps"] == second["steps"]
    assert commands.outcome() == unbroken
    assert commands.leftovers() == []


def test_a_second_process_is_told_who_is_at_work_and_ctrl_c_ends_the_first(commands: Any, unbroken: Any) -> None:
    words = commands.tiny(iterations=LONG)
    process = commands.start(words)
    try:
        commands.wait_for(process, "step 0/1")
        # Stopped, it holds its lock for as long as this test takes to ask.
        process.send_signal(signal.SIGSTOP)
        message = commands.refused(1, [*words, "--wait", "0"], f"pid {process.pid}", "step 0 of mbs")
        assert "the same command goes on" in message
        commands.refused(1, [*words, "--wait", "0.3"], f"pid {process.pid}", "waited for 0.3 s")
        process.send_signal(signal.SIGCONT)
        assert end(process, signal.SIGINT) == 1
    finally:
        process.kill()
    interrupted(commands)
    assert commands.leftovers() == []
    commands.succeed(words)
    assert commands.outcome() == unbroken


def test_ctrl_c_on_a_terminal_reaches_the_loading_processes_too(commands: Any) -> None:
    process = commands.start(commands.tiny("--workers", "2", iterations=(100_000, 2)))
    try:
        commands.wait_for(process, "step 0/1")
        time.sleep(1.0)
        assert end(process, signal.SIGINT, whole_group=True) == 1
    finally:
        process.kill()
    interrupted(commands)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see how far a process has come")
def test_ctrl_c_before_anything_has_begun(commands: Any) -> None:
    process = commands.start(commands.tiny(iterations=(100_000, 2)))
    try:
        maps = Path(f"/proc/{process.pid}/maps")
        while "libtorch_cpu" not in maps.read_text():
            assert process.poll() is None
            time.sleep(0.005)
        # Where it hits code that Python compiles from a string, Python itself ends by the signal after all is said.
        assert end(process, signal.SIGINT) in (1, -signal.SIGINT)
    finally:
        process.kill()
    interrupted(commands)
    assert not commands.out.exists()


def test_a_killed_run_goes_on_from_its_checkpoint(commands: Any, unbroken: Any) -> None:
    words, chance = commands.tiny(iterations=LONG), random.Random(15)
    # Writes 1 to 10 are those of new folders, the index and the lock, every two after them a checkpoint's.
    dies = commands.start(words, driver=DRIVER, name="dies", DIE_AT_WRITE="15")
    assert dies.wait(120) == -signal.SIGKILL, commands.read("dies")
    assert commands.records() == {}
    killed = commands.start(words, driver=DRIVER, name="killed")
    commands.wait_for(killed, "resumed at iteration", "killed")
    time.sleep(chance.uniform(0.0, 1.5))
    end(killed)
    commands.succeed(words)
    assert commands.outcome() == unbroken
    assert commands.leftovers() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["mbs", "plop"])
def test_death_at_every_kind_of_write(commands: Any, method: str) -> None:
    words = commands.tiny(method=method, iterations=(4, 3))
    commands.succeed(words)
    expected, left = commands.outcome(), []
    for write in range(1, 80):
        home = commands.home / str(write)
        home.mkdir()
        there = type(commands)(home, commands.data)
        words = there.tiny(method=method, iterations=(4, 3))
        code = there.start(words, driver=DRIVER, DIE_AT_WRITE=str(write)).wait(120)
        assert code in (0, -signal.SIGKILL), there.read()
        there.succeed(words)
        assert there.outcome() == expected
        left += there.leftovers()
        if code == 0:
            break
    assert 20 < write < 79
    assert left == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments(commands: Any) -> None:
    sizes = ["--set", "optim.iterations=60", "--set", "later.iterations=20"]
    run = ["run", "--method", "mbs", "--setting", "overlapped-15-1", "--profile", "quick", *sizes]
    whole = type(commands)(commands.home / "whole", commands.data)
    whole.succeed([*run, *whole.places()])
    words, chance, kills = [*run, *commands.places()], random.Random(15), 0
    for number in range(10):
        process = commands.start(words, driver=DRIVER, name=str(number))
        # A start takes seconds of imports, in which nothing can go wrong: count from the first sign of life.
        while process.poll() is None and not commands.read(str(number))[1].count("step"):
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 4.0))
        kills += end(process) == -signal.SIGKILL
        assert "Traceback" not in commands.read(str(number))[1]
    assert kills >= 5
    commands.succeed(words)
    assert len(commands.records()) == 6
    assert commands.outcome() == whole.outcome()
    assert commands.leftovers() == []
