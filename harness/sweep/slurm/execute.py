"""Execute a sweep's graph on a SLURM cluster: submit what is missing, then watch it."""

from __future__ import annotations

from pathlib import Path

from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.graph import Graph
from cispbench.harness.sweep.local import Outcome, heights
from cispbench.harness.sweep.slurm.cluster import Cluster
from cispbench.harness.sweep.slurm.queue import check_commands
from cispbench.harness.sweep.slurm.submit import Submitter
from cispbench.harness.sweep.slurm.watch import SlurmWatch
from cispbench.harness.sweep.sweeping import job_maker
from cispbench.results.store import Store
from cispbench.splits.errors import UsageError


def execute_on_cluster(
    graph: Graph, records: Store, steps_dir: Path, cluster: Cluster, device: str, view: SweepView
) -> Outcome:
    """Train, test and record what is missing in jobs of a SLURM cluster, and watch them.

    ``device``: that of ``node_device``. Raises RunError for what SLURM refuses, StoreError for a store that cannot be
    written to, UsageError for a path that SLURM would misread.
    """
    if not graph.to_do():
        return Outcome(0, ())

    check_commands()
    out, steps_dir, nodes = records.path.resolve(), steps_dir.resolve(), graph.to_do()
    if "%" in str(steps_dir):
        raise UsageError(
            f"--steps-dir {steps_dir}: SLURM takes % in the names of its logs for a placeholder.",
            hint="Use a folder without %.",
        )
    records.prepare()
    make, cores = job_maker(out, steps_dir), cluster.cpus_per_task
    submitter = Submitter(steps_dir, out, cluster, lambda node: make(node, None, device, cores, cores), view)
    placed = submitter.place(nodes, heights(graph))
    return SlurmWatch(nodes, placed, records, steps_dir, cluster.poll_s, view).run()
