"""A run whose process is killed again and again ends bit for bit as one that nothing has disturbed.

The processes are forked from a server that has imported all, and kill themselves at a moment that is chosen: between
two hooks, within the iterations, beside the choice of the exemplars, and while a step is published.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from cispbench.harness.runs import exemplar_choice
from cispbench.harness.runs.execute import execute
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.training import monitor
from cispbench.harness.training.hooks import Hooks
from cispbench.harness.training.iteration import PhaseTraining
from cispbench.results.store import Store
from tests.methods.short_runs import kept, memories, options, plan

STATEFUL = ("ewc", "rw", "pi", "ssul_m", "dkd_m", "reminder", "rcil", "ewf mib", "ewf plop")
# Where a process dies: whose function, which, before or after it, at which call.
Moment = tuple[Any, str, str, int]
MOMENTS: tuple[Moment, ...] = (
    (exemplar_choice, "save_chosen", "before", 1),
    (exemplar_choice, "save_chosen", "after", 1),
    (Hooks, "initialise", "after", 1),
    (Hooks, "before_training", "before", 1),
    (Hooks, "before_training", "after", 1),
    (PhaseTraining, "iterate", "before", 2),  # the first iteration is in the checkpoint
    (PhaseTraining, "iterate", "after", 1),  # and the second is lost
    (PhaseTraining, "iterate", "after", 2),
    (Hooks, "after_training", "before", 1),
    (Hooks, "after_training", "after", 1),
    (StepStore, "_rename", "before", 1),
    (StepStore, "_rename", "after", 1),
    (StepStore, "write_evaluation", "after", 1),
    (Store, "write", "after", 1),
)


def dying(function: Callable[..., Any], when: str, call: int) -> Callable[..., Any]:
    """Return the function, which kills its process at a call."""
    calls = iter(range(1, 1000))

    def called(*given: Any, **named: Any) -> Any:
        number = next(calls)
        if when == "before" and number == call:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*given, **named)
        if number == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return called


def run(name: str, folder: Path, moment: int | None) -> None:
    """Run in a process of its own, with a checkpoint after every iteration, until the moment comes."""
    torch.set_num_threads(1)
    monitor.CHECKPOINT_SECONDS, monitor.CHECKPOINT_SHARE = 0.0, 1e9
    if moment is not None:
        owner, function, when, call = MOMENTS[moment]
        wrapped = dying(getattr(owner, function), when, call)
        static = isinstance(vars(owner)[function], staticmethod)
        setattr(owner, function, staticmethod(wrapped) if static else wrapped)
    execute(plan(name), options(folder))


def exit_code(name: str, folder: Path, moment: int | None) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=run, args=(name, folder, moment))
    process.start()
    process.join()
    return process.exitcode


def recorded(name: str, folder: Path) -> list[dict[str, Any]]:
    """Return the records without what no two runs have in common: times and peaks."""
    records = execute(plan(name), options(folder)).records
    found = [asdict(record) for record in records]
    for record in found:
        for field in ("timing", "memory", "created", "environment"):
            record.pop(field, None)
    return found


def check(name: str, folder: Path, steps: int) -> None:
    """Kill a run at every moment, in each of its first ``steps`` steps, and hold it against one that is left alone."""
    made, calm, killed = plan(name), folder / "calm", folder / "killed"
    assert exit_code(name, calm, None) == 0
    # Each process goes on from where the one before it died. Step 0 has no exemplars to choose.
    choices = [number for number, moment in enumerate(MOMENTS) if moment[1] == "save_chosen"]
    others = [number for number in range(len(MOMENTS)) if number not in choices]
    later = [*(choices if made.method.memory else []), *others]
    for moment in [*others, *later * (steps - 1)]:
        assert exit_code(name, killed, moment) == -signal.SIGKILL, MOMENTS[moment]
    assert exit_code(name, killed, None) == 0
    require_same(name, killed, calm)


def require_same(name: str, killed: Path, calm: Path) -> None:
    made = plan(name)
    for ours, theirs in zip(kept(made, killed), kept(made, calm), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert memories(made, killed) == memories(made, calm)
    assert any(found for found, _ in memories(made, calm)) == bool(made.method.memory)
    assert recorded(name, killed) == recorded(name, calm)
    assert not [path for path in killed.rglob("*") if path.name.startswith(".") or "checkpoint" in path.name]


@pytest.mark.timeout(300)
def test_a_run_that_is_killed_at_any_moment_ends_the_same(tmp_path: Path) -> None:
    check("ssul_m", tmp_path, steps=2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", STATEFUL)
def test_every_method_with_a_state_is_the_same_after_any_death_in_any_step(tmp_path: Path, name: str) -> None:
    check(name, tmp_path, steps=3)
