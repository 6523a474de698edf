"""Execute a sweep's graph on a SLURM cluster: submit what is missing, then watch it."""

from __future__ import annotations

from pathlib import Path

from cispbench.harness.sweep.display import SweepView
from cispbench.harness.sweep.execute import job_maker
from cispbench.harness.sweep.graph import Graph
from cispbench.harness.sweep.outcome import SweepOutcome
from cispbench.harness.sweep.slurm.cluster import Cluster
from cispbench.harness.sweep.slurm.queue import check_commands
from cispbench.harness.sweep.slurm.submit import Submitter
from cispbench.harness.sweep.slurm.watch import SlurmWatch
from cispbench.results.store import Store
from cispbench.splits.errors import UsageError


def execute_on_cluster(
    graph: Graph, records: Store, steps_dir: Path, cluster: Cluster, device: str, view: SweepView
) -> SweepOutcome:
    """Train, test and record what is missing in jobs of a SLURM cluster, and watch them.

    ``device``: that of ``node_device``. Raises RunError if SLURM refuses something, StoreError for a store that cannot
    be written to, UsageError for a path that SLURM would misread.
    """
    nodes = graph.to_do()
    if not nodes:  # as in ``execute_sweep``
        return SweepOutcome(0, ())
    check_commands()
    out, steps_dir, cores = records.path.resolve(), steps_dir.resolve(), cluster.cpus_per_task
    if "%" in str(steps_dir):
        raise UsageError(
            f"--steps-dir {steps_dir}: SLURM takes % in the names of its logs for a placeholder.",
            hint="Use a folder without %.",
        )
    records.prepare()
    make = job_maker(out, steps_dir)
    # These orders wait for a locked step without a limit: a job that gave up would count as failed.
    submitter = Submitter(steps_dir, out, cluster, lambda node: make(node, None, device, cores, cores), view)
    watch = SlurmWatch(nodes, records, steps_dir, cluster.poll_s, view)
    return watch.run(lambda jobs: submitter.submit(nodes, graph.priorities(), jobs))
