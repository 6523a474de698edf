"""Execute a sweep's graph on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.graph import Graph, Node
from cispbench.harness.sweep.local import LocalSweep, Outcome
from cispbench.harness.sweep.machine import Machine
from cispbench.harness.sweep.worker import StepJob
from cispbench.results.atomic import make_folder
from cispbench.results.store import Store

LOADERS = 8  # processes that load images for one accelerator, at most


def execute_sweep(graph: Graph, records: Store, steps: StepStore, machine: Machine, view: SweepView) -> Outcome:
    """Train, test and record what is missing. Raises StoreError for a store that cannot be written to."""
    if not graph.to_do():  # stores that are done may be read-only
        return Outcome(0, ())
    records.prepare()
    logs = steps.root / "logs"
    make_folder(logs)
    make = job_maker(records.path, steps.root)

    def job(node: Node, slot: int) -> StepJob:
        job = make(node, logs / f"{node.key}.log", machine.device(slot), machine.threads, machine.cores)
        return replace(job, wait=0.0)

    return LocalSweep(graph, job, machine.workers, view, steps.in_work).run()


def job_maker(out: Path, steps_dir: Path) -> Callable[[Node, Path | None, str, int, int], StepJob]:
    """Return what makes a worker's job of a node, a log file, a device, its threads and its cores."""

    def make(node: Node, log: Path | None, device: str, threads: int, cores: int) -> StepJob:
        return StepJob(
            key=node.key, step=node.step, runs=tuple(need.run for need in node.needs), out=out, steps_dir=steps_dir,
            log=log, device=device, threads=threads, loaders=0 if device == "cpu" else min(LOADERS, cores),
        )  # fmt: skip

    return make
