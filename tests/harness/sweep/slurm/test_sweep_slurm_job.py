"""Jobs on a cluster, without one: what they do with SLURM's signals, and what they say."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.sweep.slurm import job as slurm_job
from cispbench.harness.sweep.slurm.job import ChainJob, work_on_chain
from cispbench.harness.sweep.slurm.notes import SlurmNotes, StepReport
from cispbench.harness.sweep.worker import StepJob
from cispbench.harness.training.job import StoppedError
from cispbench.splits.errors import RunError


class Steps:
    """Stands for the training of steps: each call does what the next script says, and what was asked is kept."""

    def __init__(self, *scripts: Any) -> None:
        self.scripts, self.asked = list(scripts), []

    def __call__(self, step: StepJob, view: Any, stop: Any) -> None:
        for number in self.scripts.pop(0):
            os.kill(os.getpid(), number)
        self.asked.append((step.step, stop()))
        if stop():
            raise StoppedError("stopped as asked.")


@pytest.fixture
def a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ChainJob, SlurmNotes, list[str]]]:
    """A job of two steps in task 2 of array 5, its notes, and the jobs that it puts back into the queue."""
    steps = tuple(StepJob(f"key{step}", step, (), tmp_path, tmp_path, None, "cpu", 1, 0) for step in (0, 1))
    requeued: list[str] = []
    monkeypatch.setattr(slurm_job.slurm_queue, "requeue", requeued.append)
    for name, value in {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    yield ChainJob(("cispbench-x", 2), steps, max_requeues=1, signal_delay_s=600), SlurmNotes(tmp_path), requeued
    for number, handler in before.items():
        signal.signal(number, handler)


def report(notes: SlurmNotes, key: str) -> StepReport:
    found = notes.report(key, ("cispbench-x", 2))
    assert found is not None
    return found


def test_a_warned_job_puts_itself_back_into_the_queue(a_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job, notes, requeued = a_job
    steps = Steps([], [signal.SIGUSR2])
    monkeypatch.setattr(slurm_job, "do_step", steps)
    with pytest.raises(SystemExit) as end:
        work_on_chain(job)
    assert (end.value.code, requeued, steps.asked) == (slurm_job.REQUEUED, ["5_2"], [(0, False), (1, True)])
    assert [report(notes, f"key{step}").state for step in (0, 1)] == ["done", "requeued"]


def test_a_job_that_was_started_too_often_has_failed(a_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job, notes, requeued = a_job
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(slurm_job, "do_step", Steps([signal.SIGUSR2]))
    with pytest.raises(RunError, match="started 2 times"):
        work_on_chain(job)
    assert requeued == []
    assert (report(notes, "key0").state, report(notes, "key0").starts) == ("failed", 2)
    assert "max_requeues: 1" in report(notes, "key0").reason


def test_a_terminated_job_saves_and_goes_on(a_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job, notes, requeued = a_job
    steps = Steps([signal.SIGTERM], [], [])
    monkeypatch.setattr(slurm_job, "do_step", steps)
    work_on_chain(job)
    assert (requeued, steps.asked) == ([], [(0, True), (0, False), (1, False)])
    assert report(notes, "key1").state == "done"


def test_a_job_that_cannot_stop_in_time_is_requeued_from_where_it_is(
    a_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _, requeued = a_job
    left = threading.Event()

    def exit_at_once(code: int) -> None:
        assert code == slurm_job.REQUEUED
        left.set()

    def evaluate(step: StepJob, view: Any, stop: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert left.wait(60)  # nobody asks whether to stop
        raise RuntimeError("over")  # where the process would be gone

    monkeypatch.setattr(slurm_job.os, "_exit", exit_at_once)
    monkeypatch.setattr(slurm_job, "do_step", evaluate)
    with pytest.raises(RuntimeError, match="over"):
        work_on_chain(ChainJob(job.task, job.steps, job.max_requeues, signal_delay_s=0))
    assert requeued == ["5_2"]
