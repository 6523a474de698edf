"""A sweep from its plan to its end: what ``cispbench sweep`` does, apart from printing scores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cispbench.harness.environment import usable_cores
from cispbench.harness.launch import choose_device
from cispbench.harness.progress import ProgressView
from cispbench.harness.step_store import StepStore
from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.findings import Findings
from cispbench.harness.sweep.graph import Graph, Node, build_graph
from cispbench.harness.sweep.local import LocalSweep, Outcome
from cispbench.harness.sweep.matrix import Cell
from cispbench.harness.sweep.planning import Choices, Planner, SweepPlan
from cispbench.harness.sweep.worker import StepJob
from cispbench.results.atomic import make_folder
from cispbench.results.store import Store

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
    return LocalSweep(graph, _job_maker(plan, choices, records.path, logs, machine), machine.workers, view).run()


def _job_maker(
    plan: SweepPlan, choices: Choices, out: Path, logs: Path, machine: Machine
) -> Callable[[Node, int], StepJob]:
    def make(node: Node, slot: int) -> StepJob:
        runs = tuple(need.run for need in node.needs)
        device = machine.device(slot)
        return StepJob(
            key=node.key, step=node.step, runs=runs, out=out, steps_dir=choices.steps_dir, log=logs / f"{node.key}.log",
            device=device, threads=machine.threads, loaders=0 if device == "cpu" else min(LOADERS, machine.cores),
            weights=plan.weights.get(runs[0].recipe.weights), named=bool(choices.weights),
        )  # fmt: skip

    return make
