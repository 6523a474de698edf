"""``cispbench sweep``: many runs as one graph of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cispbench.harness.commands.options import (
    DATA_ROOT,
    MICRO_BATCH,
    OUT,
    PRINTING,
    STEPS_DIR,
    WEIGHTS,
    Printing,
    collected,
)
from cispbench.harness.commands.planning import ON, PLAN, priced_devices, print_plan
from cispbench.harness.commands.sweep_selection import SELECTION, SweepSelection
from cispbench.harness.runs.request import RunRequest

if TYPE_CHECKING:
    from cispbench.harness.sweep.display import SweepView
    from cispbench.harness.sweep.graph import Graph, Node
    from cispbench.harness.sweep.outcome import SweepOutcome
    from cispbench.harness.sweep.planning import SweepPlan
    from cispbench.results.store import Store


@dataclass(frozen=True)
class Training:
    """What all runs of a sweep have in common."""

    weights: str | None
    data_root: Path | None
    micro_batch: int | None
    share: bool

    def common(self) -> RunRequest:
        """Return a request that lacks a method and a setting yet."""
        return RunRequest(
            "", "", weights=self.weights, data_root=self.data_root, micro_batch=self.micro_batch, share=self.share
        )


@dataclass(frozen=True)
class Places:
    """Where a sweep works: its stores, and this machine's devices or a cluster."""

    out: Path
    steps_dir: Path | None
    workers: int | None
    slurm: Path | None
    device: str


def _example(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from cispbench.harness.sweep.slurm.cluster import cluster_example

        click.echo(cluster_example())
        context.exit()


@click.command()
@collected(
    SweepSelection, "selection", *SELECTION,
    click.option("--file", type=click.Path(path_type=Path, dir_okay=False, exists=True),
                 help="Sweep as YAML: methods, settings, seeds, profile, model, set. Options replace its entries."),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
                 help="Change the recipes (after what --file sets): optim.lr=0.002."),
)  # fmt: skip
@collected(
    Training, "training", WEIGHTS, DATA_ROOT, MICRO_BATCH,
    click.option("--no-share", "share", is_flag=True, flag_value=False, default=True,
                 help="Let every run train all its steps itself."),
)  # fmt: skip
@collected(
    Places, "places", OUT, STEPS_DIR,
    click.option("--workers", type=click.IntRange(min=1), help="Steps to train at once. [one for each device]"),
    click.option("--slurm", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="CLUSTER.YAML",
                 help="Train in jobs of a SLURM cluster, as this file says."),
    click.option("--device", default="auto", show_default=True, help="auto and cuda: all of them; cpu, cuda:N."),
)  # fmt: skip
@click.option("--slurm-example", is_flag=True, expose_value=False, is_eager=True, callback=_example,
              help="Print a file for --slurm that explains itself.")  # fmt: skip
@PLAN
@ON
@PRINTING
def sweep(
    selection: SweepSelection, training: Training, places: Places, plan_only: bool, on: str | None, printing: Printing
) -> None:
    """Train many runs, and each step that they share only once.

    The runs are all methods on all settings with all seeds. The profile is `paper` unless another is named: a sweep
    never falls back to other data. The same command again goes on where it was stopped, and tries what failed; exit
    code 1 if a step failed. With --slurm it submits jobs and watches them: stopped, it leaves them to the cluster,
    and the same command watches them again.

    \b
    Example:
      cispbench sweep --methods mib,plop,mbs,joint --settings paper-table --seeds 0,1,2 --plan
      cispbench sweep --methods mbs --settings paper-table --seeds 0,1,2 --plan --on h100,rtx4090
      cispbench sweep --methods mib,mbs --settings 'overlapped-15-*' --profile quick --workers 2
      cispbench sweep --slurm-example > cluster.yaml
      cispbench sweep --methods mib,plop --settings paper-table --seeds 0,1,2 --slurm cluster.yaml
    """
    from cispbench.harness.machine.progress import make_view
    from cispbench.harness.runs.damaged_records import set_damaged_records_aside
    from cispbench.harness.runs.step_store import StepStore, default_steps_dir
    from cispbench.harness.sweep.graph import build_graph
    from cispbench.harness.sweep.matrix import expand
    from cispbench.harness.sweep.planning import plan_sweep
    from cispbench.harness.sweep.slots import choose_slots
    from cispbench.harness.sweep.slurm.cluster import Cluster, node_device, read_cluster
    from cispbench.harness.sweep.step_states import StepStates
    from cispbench.results.protocols import load_protocol
    from cispbench.results.store import Store

    if not plan_only:
        import torch  # noqa: F401 (once it is loaded, what devices there are is known for certain)
    load_protocol(printing.protocol)
    priced = priced_devices(on, plan_only)
    cluster: Cluster | None = None
    if places.slurm is not None:
        _refuse_workers(places)
        cluster = read_cluster(places.slurm)
    nodes = None if cluster is None else node_device(places.device, cluster)
    requests = expand(selection.request(), training.common())
    slots = choose_slots("cpu" if cluster else places.device, places.workers)
    records, steps = Store(places.out), StepStore(places.steps_dir or default_steps_dir())
    with make_view(quiet=printing.quiet or printing.as_json) as view:
        plan = plan_sweep(requests, steps, view, plan_only=plan_only)
        if not plan_only:
            set_damaged_records_aside(records, view)
    states = StepStates(records, steps, slots.devices[0], training.micro_batch)
    graph = build_graph(plan.runs, states.find)
    _warn_of_other_code(graph)
    if plan_only:
        print_plan(plan, graph, printing, priced, divisible=False)
        return
    from cispbench.harness.commands.sweep_results import print_outcome

    _warn(graph, on_cpu=cluster is None and slots.devices[0] == "cpu")
    lines = _view(plan, records, printing)
    outcome: SweepOutcome
    if cluster is None or nodes is None:
        from cispbench.harness.sweep.execute import execute_sweep

        outcome = execute_sweep(graph, records, steps, slots, lines)
    else:
        from cispbench.harness.sweep.slurm.execute import execute_on_cluster

        outcome = execute_on_cluster(graph, records, steps.root, cluster, nodes, lines)
    print_outcome(graph, records, outcome, printing)


def _warn(graph: Graph, on_cpu: bool) -> None:
    """Warn of what would train for months, or on a part of the data.

    Only the CPU is measured: a cluster's devices are not here, and a GPU may take one process alone.
    """
    import torch

    from cispbench.harness.runs.forecast import paper_warnings
    from cispbench.harness.runs.step_cost import Training

    trainings = [Training(node.needs[0].run, node.step) for node in graph.to_do() if node.to_train]
    for warning in paper_warnings(trainings, torch.device("cpu") if on_cpu else None):
        click.echo(warning, err=True)


def _refuse_workers(places: Places) -> None:
    from cispbench.splits.errors import UsageError

    if places.workers is not None:
        raise UsageError(
            f"--workers {places.workers} is for this machine, and --slurm {places.slurm} for a cluster: name one of "
            "them.",
            hint="array_parallelism in the cluster file says how many jobs may run at once.",
        )


def _warn_of_other_code(graph: Graph) -> None:
    """Say, with --quiet and --json too, that finished steps were trained by code that has been edited since."""
    from cispbench.harness.machine.progress import number_of

    edited = [node for node in graph.nodes if not node.to_train and node.reason]
    if edited:
        click.echo(
            f"Warning: {number_of(len(edited), 'finished step')} trained by other code of {_names(edited)} than "
            "today's, with the same version. Raise the version if results change. `sweep --plan` names the steps.",
            err=True,
        )


def _names(nodes: Sequence[Node]) -> str:
    return ", ".join(sorted({name for node in nodes for name in node.methods}))


def _view(plan: SweepPlan, records: Store, printing: Printing) -> SweepView:
    from cispbench.harness.commands.sweep_results import step_scores
    from cispbench.harness.sweep.display import make_sweep_view

    lines = make_sweep_view(step_scores(records, printing.protocol), quiet=printing.quiet or printing.as_json)
    for entry in plan.left_out:
        lines.note(f"left out: {entry.method} on {entry.setting}: {entry.reason}")
    for note in plan.notes:
        lines.note(note)
    return lines
