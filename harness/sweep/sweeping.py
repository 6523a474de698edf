"""A sweep from its plan to its end: what ``cispbench sweep`` does, apart from printing scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cispbench.harness.plan import code_versions
from cispbench.harness.step_store import StepStore
from cispbench.harness.sweep.cluster import Cluster
from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.graph import Graph, Node
from cispbench.harness.sweep.local import LocalSweep, Outcome, heights
from cispbench.harness.sweep.machine import Machine
from cispbench.harness.sweep.planning import Choices, SweepPlan
from cispbench.harness.sweep.worker import StepJob
from cispbench.results.atomic import make_folder
from cispbench.results.store import Store
from cispbench.splits.errors import UsageError

LOADERS = 8  # processes that load images for one accelerator, at most


def execute_sweep(
    plan: SweepPlan, graph: Graph, choices: Choices, records: Store, machine: Machine, view: SweepView
) -> Outcome:
    """Train, test and record what is missing. Raises StoreError for a store that cannot be written to."""
    if not graph.to_do():  # stores that are done may be read-only
        return Outcome(0, ())
    records.prepare()
    logs = choices.steps_dir / "logs"
    make_folder(logs)
    make = _job_maker(plan, choices, records.path)

    def job(node: Node, slot: int) -> StepJob:
        job = make(node, logs / f"{node.key}.log", machine.device(slot), machine.threads, machine.cores)
        return replace(job, wait=0.0)

    steps = StepStore(choices.steps_dir)
    return LocalSweep(graph, job, machine.workers, view, steps.in_work).run()


def execute_on_cluster(
    plan: SweepPlan, graph: Graph, choices: Choices, records: Store, cluster: Cluster, device: str, view: SweepView
) -> Outcome:
    """Train, test and record what is missing in jobs of a SLURM cluster, and watch them.

    ``device``: that of ``node_device``. Raises RunError for what SLURM refuses, StoreError for a store that cannot be
    written to, UsageError for a path that SLURM would misread.
    """
    if not graph.to_do():
        return Outcome(0, ())
    from cispbench.harness.sweep.slurm_queue import check_commands
    from cispbench.harness.sweep.slurm_submit import Submitter
    from cispbench.harness.sweep.slurm_watch import SlurmWatch

    check_commands()
    out, steps_dir, nodes = records.path.resolve(), choices.steps_dir.resolve(), graph.to_do()
    if "%" in str(steps_dir):
        raise UsageError(
            f"--steps-dir {steps_dir}: SLURM takes % in the names of its logs for a placeholder.",
            hint="Use a folder without %.",
        )
    records.prepare()
    make, cores = _job_maker(plan, replace(choices, steps_dir=steps_dir), out), cluster.cpus_per_task
    submitter = Submitter(steps_dir, out, cluster, lambda node: make(node, None, device, cores, cores), view)
    placed = submitter.place(nodes, heights(graph))
    return SlurmWatch(nodes, placed, records, steps_dir, cluster.poll_s, view).run()


def _job_maker(plan: SweepPlan, choices: Choices, out: Path) -> Callable[[Node, Path | None, str, int, int], StepJob]:
    def make(node: Node, log: Path | None, device: str, threads: int, cores: int) -> StepJob:
        runs = tuple(need.run for need in node.needs)
        return StepJob(
            key=node.key, step=node.step, runs=runs, out=out, steps_dir=choices.steps_dir, log=log, device=device,
            threads=threads, loaders=0 if device == "cpu" else min(LOADERS, cores),
            weights=plan.weights.get(runs[0].recipe.weights), named=bool(choices.weights),
            versions=code_versions(runs[0].method), micro_batch=choices.micro_batch,
        )  # fmt: skip

    return make
