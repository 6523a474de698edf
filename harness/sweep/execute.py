"""Execute a sweep's graph on this machine: what ``cispbench sweep`` does between its plan and its table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cispbench.harness.runs.plan import code_versions
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.graph import Graph, Node
from cispbench.harness.sweep.local import LocalSweep
from cispbench.harness.sweep.outcome import SweepOutcome
from cispbench.harness.sweep.planning import Choices, SweepPlan
from cispbench.harness.sweep.slots import WorkerSlots
from cispbench.harness.sweep.worker import StepJob
from cispbench.results.atomic import make_folder
from cispbench.results.store import Store

MAX_LOADERS = 8  # processes that load images for one GPU


def execute_sweep(
    plan: SweepPlan, graph: Graph, choices: Choices, records: Store, slots: WorkerSlots, view: SweepView
) -> SweepOutcome:
    """Train, test and record what is missing. Raises StoreError for a store that cannot be written to."""
    if not graph.to_do():  # before anything is written: stores of a finished sweep may be read-only
        return SweepOutcome(0, ())
    records.prepare()
    logs = choices.steps_dir / "logs"
    make_folder(logs)
    make = job_maker(plan, choices, records.path)

    def job(node: Node, slot: int) -> StepJob:
        job = make(node, logs / f"{node.key}.log", slots.device(slot), slots.threads, slots.cores)
        return replace(job, wait=0.0)  # a worker that finds the step locked gives its slot back at once

    return LocalSweep(graph, job, slots.workers, view, StepStore(choices.steps_dir).in_work).run()


def job_maker(plan: SweepPlan, choices: Choices, out: Path) -> Callable[[Node, Path | None, str, int, int], StepJob]:
    """Return the function that makes the order for a node, from its log, device, threads and cores."""

    def make(node: Node, log: Path | None, device: str, threads: int, cores: int) -> StepJob:
        runs = tuple(need.run for need in node.needs)
        return StepJob(
            key=node.key, step=node.step, runs=runs, out=out, steps_dir=choices.steps_dir, log=log, device=device,
            threads=threads, loaders=0 if device == "cpu" else min(MAX_LOADERS, cores),
            weights=plan.weights.get(runs[0].recipe.weights), named=bool(choices.weights),
            versions=code_versions(runs[0].method), micro_batch=choices.micro_batch,
        )  # fmt: skip

    return make
