"""Execute a sweep's graph on this machine: what ``cispbench sweep`` does between its plan and its table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cispbench.harness.machine.devices import default_loaders
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.graph import Graph, Node
from cispbench.harness.sweep.local import LocalSweep
from cispbench.harness.sweep.outcome import SweepOutcome
from cispbench.harness.sweep.slots import WorkerSlots
from cispbench.harness.sweep.worker import StepJob
from cispbench.results.atomic import make_folder
from cispbench.results.store import Store


def execute_sweep(graph: Graph, records: Store, steps: StepStore, slots: WorkerSlots, view: SweepView) -> SweepOutcome:
    """Train, test and record what is missing. Raises StoreError for a store that cannot be written to."""
    if not graph.to_do():  # before anything is written: stores of a finished sweep may be read-only
        return SweepOutcome(0, ())
    records.prepare()
    logs = steps.root / "logs"
    make_folder(logs)
    make = job_maker(records.path, steps.root)

    def job(node: Node, slot: int) -> StepJob:
        job = make(node, logs / f"{node.key}.log", slots.device(slot), slots.threads, slots.cores)
        return replace(job, wait=0.0)  # a worker that finds the step locked gives its slot back at once

    return LocalSweep(graph, job, slots.workers, view, steps.in_work).run()


def job_maker(out: Path, steps_dir: Path) -> Callable[[Node, Path | None, str, int, int], StepJob]:
    """Return the function that makes the order for a node, from its log, device, threads and cores."""

    def make(node: Node, log: Path | None, device: str, threads: int, cores: int) -> StepJob:
        return StepJob(
            key=node.key, step=node.step, runs=tuple(need.run for need in node.needs), out=out, steps_dir=steps_dir,
            log=log, device=device, threads=threads, loaders=default_loaders(device, cores),
        )  # fmt: skip

    return make
