"""A process that loads images dies: the run ends with an error that says so, and the same command goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

ITERATIONS = (100, 2)
# A checkpoint after every iteration that is logged, so that the run has something to go on from.
DRIVER = """
from cispbench.harness.training import monitor
from cispbench.harness.cli import main

monitor.CHECKPOINT_SECONDS, monitor.CHECKPOINT_SHARE = 0.0, 1e9
main()
"""


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that load images."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return [child for child in found if "resource_tracker" not in Path(f"/proc/{child}/cmdline").read_text()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the loaders")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_killed_loader_is_named_and_the_same_command_goes_on(commands: Any, number: signal.Signals) -> None:
    words = commands.tiny("--workers", "2", iterations=ITERATIONS, method="finetune")
    process = commands.start(words, DRIVER)
    while not list(commands.steps.glob("work/*/checkpoint.pt")):
        assert process.poll() is None, commands.read()
    loaders = children(process.pid)
    assert len(loaders) == 2
    os.kill(loaders[0], number)
    assert process.wait(60) == 1
    out, err = commands.read()
    assert out == "" and "Traceback" not in err
    # A loader that is asked to end by SIGTERM may do so in order.
    ways = ("was killed by SIGTERM", "has ended") if number == signal.SIGTERM else (f"was killed by {number.name}",)
    assert any(f"a process that loads images (pid {loaders[0]}) {way}" in err for way in ways), err
    assert "goes on from the last checkpoint" in err and "--workers" in err
    again = commands.succeed(commands.tiny(iterations=ITERATIONS, method="finetune"))
    assert "resumed at iteration" in again.stderr
