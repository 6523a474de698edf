"""The end of a training: the step is published, and its checkpoint is removed, now or by the next run."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.training import monitor


@pytest.fixture(autouse=True)
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every iteration."""
    monkeypatch.setattr(monitor, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(monitor, "CHECKPOINT_SHARE", 1e9)


def test_a_checkpoint_that_cannot_be_removed_does_not_fail_the_run_and_is_said(
    commands: Any, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "checkpoint.pt":
            raise OSError(errno.EIO, "Input/output error")
        right(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        result = commands.succeed(commands.tiny("--quiet"))
    paths = sorted(commands.steps.glob("work/*/checkpoint.pt"))
    assert len(paths) == 2 and all(f"cannot remove {path}" in result.stderr for path in paths)
    assert commands.outcome() == finished.outcome()


def test_a_checkpoint_left_by_a_kill_after_publishing_is_removed_by_the_next_run(
    commands: Any, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = StepStore.publish

    def publish(self: StepStore, *args: Any) -> None:
        right(self, *args)
        raise KeyboardInterrupt  # as a kill right after the rename

    with monkeypatch.context() as patch:
        patch.setattr(StepStore, "publish", publish)
        assert "Interrupted" in commands.invoke(commands.tiny()).stderr
    assert len(list(commands.steps.glob("work/*/checkpoint.pt"))) == 1
    commands.succeed(commands.tiny())
    assert commands.leftovers() == []
    assert commands.outcome() == finished.outcome()


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_a_run_whose_messages_nobody_can_read_stores_and_prints_its_results(
    commands: Any, finished: Any, closed: str
) -> None:
    words = ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-m", "cispbench.harness.cli", *commands.tiny()]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and "| mbs (measured)" in done.stdout
    assert commands.outcome() == finished.outcome()
