"""``cispbench sweep`` and ``cispbench status``: many runs as one graph of steps, and how it stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cispbench.harness.sweep.graph import Graph, Node
    from cispbench.harness.sweep.local import Failure
    from cispbench.harness.sweep.matrix import Wish
    from cispbench.harness.sweep.slurm.cluster import Cluster
    from cispbench.results.store import Store

_SELECTION = (
    click.option("--methods", metavar="A,B", help="Methods, see `cispbench list methods`."),
    click.option("--settings", metavar="A,B", help="Settings, patterns such as 'overlapped-*', and paper-table."),
    click.option("--seeds", metavar="0,1", help="Seeds. [0]"),
    click.option("--profile", help="paper (the published recipe), mini (small real data) or quick (built-in scenes)."),
    click.option("--model", help="Model instead of the recipes', see `cispbench list models`."),
    click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True,
                 help="Folder of the records (one small JSON a step, below runs/)."),
    click.option("--steps-dir", type=click.Path(path_type=Path), help="Folder of weights, checkpoints and logs. "
                 "[.cispbench]"),
    click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts."),
)  # fmt: skip


def _selection(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_SELECTION):
        command = option(command)
    return command


def _example(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from cispbench.harness.sweep.slurm.cluster import cluster_example

        click.echo(cluster_example())
        context.exit()


@click.command()
@_selection
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Sweep as YAML: methods, settings, seeds, profile, model, set. Options replace its entries.",
)
@click.option("--weights", help="Pre-trained encoder: a file, a name from `cispbench list weights`, or none.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder with VOC2012 or ADEChallengeData2016.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change the recipes (after what --file sets): optim.lr=0.002.",
)
@click.option("--plan", "plan_only", is_flag=True, help="Print the graph of steps and its cost; train nothing.")
@click.option("--workers", type=click.IntRange(min=1), help="Steps at once. [one a device]")
@click.option(
    "--slurm",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="CLUSTER.YAML",
    help="Train in jobs of a SLURM cluster, as this file says.",
)
@click.option(
    "--slurm-example",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_example,
    help="Print a file for --slurm that explains itself.",
)
@click.option("--device", default="auto", show_default=True, help="auto and cuda: all of them; cpu, cuda:N.")
@click.option(
    "--micro-batch",
    type=click.IntRange(min=1),
    metavar="M",
    help="Hold at most so many images at once on a device, and add up the gradients of the batch. [all]",
)
@click.option("--no-share", "apart", is_flag=True, help="Let every run train all its steps itself.")
@click.option("--protocol", default="strict", show_default=True, help="How scores are computed.")
@click.option("--quiet", is_flag=True, help="No progress, only the table.")
def sweep(**choices: Any) -> None:  # fmt: skip
    """Train methods on settings with seeds, every step that runs have in common once.

    The profile is `paper` unless another is named: a sweep never falls back to other data. The same command again goes
    on where it was stopped, and tries what failed; exit code 1 if a step failed. With --slurm it submits jobs and
    watches them: stopped, it leaves them to the cluster, and the same command watches them again.

    \b
    Example:
      cispbench sweep --methods finetune,mib,plop,mbs,joint --settings paper-table --seeds 0,1,2 --plan
      cispbench sweep --methods mib,mbs --settings 'overlapped-15-*' --profile quick --workers 2
      cispbench sweep --slurm-example > cluster.yaml
      cispbench sweep --methods mib,plop --settings paper-table --seeds 0,1,2 --slurm cluster.yaml
    """
    _sweep(**choices)


def _sweep(
    *, out: Path, steps_dir: Path | None, as_json: bool, weights: str | None, data_root: Path | None, plan_only: bool,
    workers: int | None, slurm: Path | None, device: str, micro_batch: int | None, apart: bool, protocol: str,
    quiet: bool, **asked: Any,
) -> None:  # fmt: skip
    from cispbench.harness.machine.progress import make_view
    from cispbench.harness.runs.step_store import default_steps_dir
    from cispbench.harness.sweep.display import make_sweep_view
    from cispbench.harness.sweep.machine import choose_machine
    from cispbench.harness.sweep.matrix import expand
    from cispbench.harness.sweep.planning import Choices, plan_sweep
    from cispbench.harness.sweep.slurm.cluster import node_device
    from cispbench.results.protocols import load_protocol
    from cispbench.results.store import Store

    if not plan_only:  # brings torch, which then says for certain what devices there are
        from cispbench.harness.sweep.slurm.execute import execute_on_cluster
        from cispbench.harness.sweep.sweeping import execute_sweep

    load_protocol(protocol)
    cluster = None if slurm is None else _cluster(slurm, workers)
    nodes = None if cluster is None else node_device(device, cluster)
    wish = _wish(**asked)
    cells, machine, records = expand(wish), choose_machine("cpu" if cluster else device, workers), Store(out)
    choices = Choices(
        wish.profile or "paper", wish.model, wish.set or (), weights, data_root, steps_dir or default_steps_dir(),
        apart, micro_batch,
    )  # fmt: skip
    with make_view(quiet=quiet or as_json) as view:
        plan, graph = plan_sweep(cells, choices, records, machine, view, to_train=not plan_only)
    if plan_only:
        from cispbench.harness.sweep.showing import plan_json, plan_text

        click.echo(plan_json(plan, graph) if as_json else plan_text(plan, graph))
        return
    lines = make_sweep_view(_scores(records, protocol), quiet=quiet or as_json)
    for entry in plan.left_out:
        lines.note(f"left out: {entry.method} on {entry.setting}: {entry.reason}")
    for note in plan.notes:
        lines.note(note)
    if cluster is None or nodes is None:
        outcome = execute_sweep(plan, graph, choices, records, machine, lines)
    else:
        outcome = execute_on_cluster(plan, graph, choices, records, cluster, nodes, lines)
    _report(graph, records, protocol, outcome.finished, outcome.failures, as_json)


def _cluster(path: Path, workers: int | None) -> Cluster:
    from cispbench.harness.sweep.slurm.cluster import read_cluster
    from cispbench.splits.errors import UsageError

    if workers is not None:
        raise UsageError(
            f"--workers {workers} is for this machine, and --slurm {path} for a cluster: name one of them.",
            hint="array_parallelism in the cluster file says how many jobs may run at once.",
        )
    return read_cluster(path)


def _wish(file: Path | None = None, overrides: tuple[str, ...] = (), **words: str | None) -> Wish:
    from cispbench.harness.sweep.matrix import Wish, read_wish, split_seeds, split_words

    def listed(name: str) -> tuple[str, ...] | None:
        return None if words[name] is None else split_words(str(words[name]))

    given = Wish(
        methods=listed("methods"), settings=listed("settings"),
        seeds=None if words["seeds"] is None else split_seeds(str(words["seeds"])),
        profile=words["profile"], model=words["model"], set=overrides or None,
    )  # fmt: skip
    return given if file is None else given.over(read_wish(file))


def _scores(records: Store, protocol: str) -> Callable[[Node], str]:
    """Return what says how the first run of a step has scored after it."""
    from cispbench.reports.tables.numbers import number_text
    from cispbench.reports.tables.runs import score_record

    def say(node: Node) -> str:
        record = records.find(node.key, node.needs[0].run.run_key)
        if record is None:
            return ""
        scores = score_record(record, protocol)
        return "  ".join(f"{name} {number_text(getattr(scores, name), 1)}" for name in ("old", "new", "all"))

    return say


def _report(
    graph: Graph, records: Store, protocol: str, finished: int, failures: tuple[Failure, ...], as_json: bool
) -> None:
    import json

    from cispbench.splits.errors import RunError

    if as_json:
        failed = [
            {"key": entry.node.key, "step": entry.node.name, "reason": entry.reason,
             "log": None if entry.log is None else str(entry.log)}
            for entry in failures
        ]  # fmt: skip
        click.echo(json.dumps({"finished": finished, "failed": failed, "runs": _run_rows(graph, records, protocol)}))
    else:
        click.echo(f"{finished} steps finished now.\n\n{_run_table(_run_rows(graph, records, protocol))}")
    if failures:
        reasons = [
            f"{entry.node.name}: {entry.reason}" + (f" Log: {entry.log}" if entry.log else "") for entry in failures
        ]
        raise RunError(
            "\n  ".join([f"{len(failures)} steps failed or were not tried:", *reasons]) + "\n",
            hint="The same command tries them again, and leaves what is finished as it is.",
        )


def _run_rows(graph: Graph, records: Store, protocol: str) -> list[dict[str, Any]]:
    """Return the finished runs of the sweep, in its order, with their scores."""
    from cispbench.reports.tables.runs import run_json, score_record, scores_json

    last = {}
    for node in graph.nodes:
        for need in node.needs:
            if need.planned is need.run.steps[-1]:
                last[need.run.run_key] = node.key
    known = {(record.key, record.run_key): record for record in records.records()}
    found = [known[key, run_key] for run_key, key in last.items() if (key, run_key) in known]
    return [{**run_json(record), **scores_json(score_record(record, protocol))} for record in found]


def _run_table(rows: list[dict[str, Any]]) -> str:
    from cispbench.reports.tables.markdown import markdown_table
    from cispbench.reports.tables.numbers import number_text
    from cispbench.reports.tables.runs import comparable, comparison_warning

    def number(value: float | None) -> str:
        return "-" if value is None else number_text(value, 2)

    names = ("method", "setting", "model", "profile", "seed")
    cells = [
        [*(str(row[name]) for name in names), *(number(row[name]) for name in ("old", "new", "all"))] for row in rows
    ]
    if not rows:
        return "No run is finished."
    kinds = dict.fromkeys((row["data"], row["profile"]) for row in rows)
    warnings = [comparison_warning(*kind) for kind in kinds if not comparable(*kind)]
    return "\n\n".join([markdown_table([*names, "old", "new", "all"], cells), *warnings])


@click.command()
@_selection
def status(out: Path, steps_dir: Path | None, as_json: bool, **asked: Any) -> None:
    """Show what is being trained, what is recorded and what is published, from the stores alone.

    It may be asked from another shell or machine while sweeps and runs are under way.

    \b
    Example:
      cispbench status
      cispbench status --methods mib --settings 'overlapped-15-*' --json
    """
    from cispbench.harness.commands.status import status_of
    from cispbench.harness.runs.step_store import default_steps_dir

    found = status_of(out, steps_dir or default_steps_dir(), _wish(**asked))
    click.echo(found.as_json() if as_json else found.as_text())
