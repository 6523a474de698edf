"""A sweep from its plan to its end: what ``cispbench sweep`` does, apart from printing scores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cispbench.harness.environment import usable_cores
from cispbench.harness.launch import choose_device
from cispbench.harness.progress import ProgressView
from cispbench.harness.step_store import StepStore
from cispbench.harness.sweep.cluster import Cluster
from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.findings import Findings
from cispbench.harness.sweep.graph import Graph, Node, build_graph
from cispbench.harness.sweep.local import LocalSweep, Outcome, heights
from cispbench.harness.sweep.matrix import Cell
from cispbench.harness.sweep.planning import Choices, Planner, SweepPlan
from cispbench.harness.sweep.worker import StepJob
from cispbench.results.atomic import make_folder
from cispbench.results.store import Store
from cispbench.splits.errors import UsageError

LOADERS = 8  # processes that load images for one accelerator, at most


@dataclass(frozen=True)
class Machine:
    """Where steps are executed: the devices, and how many steps at once."""

    devices: tuple[str, ...]
    workers: int

    @property
    def cores(self) -> int:
        """The cores each worker may use."""
        return max(1, usable_cores()[0] // self.workers)

    @property
    def threads(self) -> int:
        """The threads each worker computes with: its cores, or fewer where OMP_NUM_THREADS says so."""
        said = os.environ.get("OMP_NUM_THREADS", "")
        return min(self.cores, max(1, int(said))) if said.isdecimal() else self.cores

    def device(self, slot: int) -> str:
        """Return the device of a worker."""
        return self.devices[slot % len(self.devices)]


def choose_machine(device: str, workers: int | None) -> Machine:
    """Return the devices that ``auto`` or a name stands for, and a worker for each unless said. Raises UsageError."""
    import torch

    chosen = choose_device(device)
    count = torch.cuda.device_count() if str(chosen) == "cuda" else 1
    devices = tuple(f"cuda:{number}" for number in range(count)) if str(chosen) == "cuda" else (str(chosen),)
    return Machine(devices, workers or len(devices))


def plan_sweep(
    cells: Sequence[Cell], choices: Choices, records: Store, machine: Machine, view: ProgressView, to_train: bool
) -> tuple[SweepPlan, Graph]:
    """Plan all runs and hold their steps against the stores. Raises CispbenchError."""
    plan = Planner(choices, view, to_train).plan(cells)
    findings = Findings(records, StepStore(choices.steps_dir), machine.devices[0])
    return plan, build_graph(plan.runs, findings.find)


def execute_sweep(
    plan: SweepPlan, graph: Graph, choices: Choices, records: Store, machine: Machine, view: SweepView
) -> Outcome:
    """Train, test and record what is missing. Raises StoreError for a store that cannot be written to."""
    records.prepare()
    logs = choices.steps_dir / "logs"
    make_folder(logs)
    make = _job_maker(plan, choices, records.path)

    def job(node: Node, slot: int) -> StepJob:
        return make(node, logs / f"{node.key}.log", machine.device(slot), machine.threads, machine.cores)

    return LocalSweep(graph, job, machine.workers, view).run()


def node_device(asked: str, cluster: Cluster) -> str:
    """Return the device of the cluster's nodes: the GPU that a job asks for, never the CPU for want of one.

    Raises UsageError for a device that does not go with the cluster file.
    """
    wanted = "cuda" if cluster.gpus else "cpu"
    if asked in ("auto", wanted) or (asked == "cpu" and cluster.gpus):
        return wanted if asked == "auto" else asked
    raise UsageError(
        f"--device {asked} does not go with gpus: {cluster.gpus} in the cluster file.",
        hint="Leave --device out: a job trains on the GPU that it asks for, else on the CPU.",
    )


def execute_on_cluster(
    plan: SweepPlan, graph: Graph, choices: Choices, records: Store, cluster: Cluster, device: str, view: SweepView
) -> Outcome:
    """Train, test and record what is missing in jobs of a SLURM cluster, and watch them.

    ``device``: that of ``node_device``. Raises RunError for what SLURM refuses, StoreError for a store that cannot be
    written to.
    """
    from cispbench.harness.sweep.slurm_queue import check_commands
    from cispbench.harness.sweep.slurm_submit import Submitter
    from cispbench.harness.sweep.slurm_watch import SlurmWatch

    check_commands()
    records.prepare()
    out, steps_dir, nodes = records.path.resolve(), choices.steps_dir.resolve(), graph.to_do()
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
        )  # fmt: skip

    return make
