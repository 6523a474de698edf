"""``cispbench check``: whether measured numbers have moved away from baselines or from what is published."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from cispbench.harness.commands.options import (
    JSON,
    METHOD_GLOB,
    RESULTS,
    SETTING_GLOB,
    RunFilter,
    collected,
    refuse_given,
)


@dataclass(frozen=True)
class CheckRules:
    """What the runs are compared with, and when the check fails."""

    baselines: Path | None
    tolerance: float
    protocol: str | None
    complete: bool
    allow_empty: bool


@dataclass(frozen=True)
class BaselineUpdate:
    """Whether the baselines are written anew, and what is noted beside them."""

    update: bool
    reason: str | None
    machine: float | None
    made_by: str | None


@dataclass(frozen=True)
class StoreChoice:
    """Whether the stores themselves are checked, and records without a checksum are written anew."""

    store: bool
    rewrite: bool
    steps_dir: Path | None


def _number(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    # FloatRange lets NaN pass, as no comparison with NaN is true; a tolerance of NaN would accept every number.
    if value is not None and math.isnan(value):
        raise click.BadParameter("NaN is not a number of points.")
    return value


@click.command()
@RESULTS
@click.option("--baselines", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of the baselines. [those that come with cispbench]")  # fmt: skip
@collected(RunFilter, "runs", METHOD_GLOB, SETTING_GLOB)
@collected(
    CheckRules, "rules",
    click.option("--tolerance", type=click.FloatRange(0, 100), default=0.5, show_default=True, metavar="POINTS",
                 callback=_number, help="Smallest difference that counts; the spread over seeds may allow for more."),
    click.option("--protocol", help="Protocol for runs on full data. [the one each published row's numbers follow]"),
    click.option("--complete", is_flag=True, help="Fail, too, where a baseline has no measured run."),
    click.option("--allow-empty", is_flag=True, help="Do not fail where nothing could be compared."),
)  # fmt: skip
@collected(
    BaselineUpdate, "baseline",
    click.option("--update", is_flag=True, help="Write the measured quick and mini cells as the new baselines."),
    click.option("--reason", metavar="TEXT", help="Why the baselines change; kept in their history."),
    click.option("--machine", type=click.FloatRange(0, 100), metavar="POINTS", callback=_number,
                 help="With --update: by how much a mean may move with the processor. [as before]"),
    click.option("--made-by", metavar="COMMAND",
                 help="With --update: the command that makes the runs. [as before]"),
)  # fmt: skip
@collected(
    StoreChoice, "audit",
    click.option("--store", is_flag=True, help="Compare nothing: read all of the store, and list what is wrong."),
    click.option("--rewrite", is_flag=True,
                 help="With --store: if all is well, add a checksum to records of earlier versions."),
    click.option("--steps-dir", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="With --store: read the trained steps in DIR, too."),
)  # fmt: skip
@JSON
@click.pass_context
def check(
    context: click.Context, out: Path, runs: RunFilter, rules: CheckRules, baseline: BaselineUpdate,
    audit: StoreChoice, as_json: bool,
) -> None:  # fmt: skip
    """Compare measured runs with baselines or published numbers.

    Runs of quick and mini are compared with committed baselines, runs on full data with published numbers. A cell
    is a method on a setting, by its mean over seeds. Exit code 1 if one is worse than its tolerance allows, or if
    nothing could be compared. A method's own options do not make a run another experiment, so that a part switched off
    shows; other recipes do.

    \b
    Example:
      cispbench check --results measured
      cispbench check --results measured --update --reason "a poly schedule from step 1 on"
      cispbench check --results measured --store --steps-dir .cispbench
    """
    from cispbench.harness.commands.store_audit import audit_stores
    from cispbench.harness.commands.stores import existing_store, named_store, reported_store
    from cispbench.reports.check.comparison import CheckOptions
    from cispbench.reports.check.regression import check_store
    from cispbench.reports.check.text import check_json, check_text
    from cispbench.reports.check.update import Update, update_baselines
    from cispbench.results.baselines_files import COMMITTED, read_baselines
    from cispbench.results.protocols import load_protocol
    from cispbench.splits.errors import StoreError, UsageError

    if (audit.rewrite or audit.steps_dir) and not audit.store:
        raise UsageError("--rewrite and --steps-dir go with --store.")
    if audit.store:
        kept = {"out", "store", "rewrite", "steps_dir", "as_json"}
        refuse_given({str(option.name) for option in context.command.params} - kept, "--store, which compares nothing")
        sound = audit_stores(named_store(out), audit.steps_dir, rewrite=audit.rewrite, as_json=as_json)
        context.exit(0 if sound else 1)
    if not baseline.update and (baseline.reason, baseline.machine, baseline.made_by) != (None, None, None):
        raise UsageError("--reason, --machine and --made-by go with --update.")
    if rules.protocol is not None:
        load_protocol(rules.protocol)
    store = reported_store(out) if rules.allow_empty and not baseline.update else existing_store(out)
    folder, selection = rules.baselines or COMMITTED, runs.selection()
    if baseline.update:
        changes = Update(baseline.reason or "", baseline.machine, baseline.made_by)
        for path, written in update_baselines(store, folder, selection, changes).items():
            click.echo(f"Written: {path}" if written else f"Unchanged: {path} (no figure differs)", err=as_json)
    found = check_store(store, read_baselines(folder), selection, CheckOptions(rules.tolerance, rules.protocol))
    click.echo(check_json(found) if as_json else check_text(found, sys.stdout.isatty()))
    if not found.compared and not rules.allow_empty:
        raise StoreError(
            f"nothing was compared: {store.path} holds no run of the selection, measured here, with a reference.",
            hint="Name the folder of the runs by --results, or let it pass by --allow-empty.",
        )
    context.exit(1 if found.count("worse") or (rules.complete and found.count("missing")) else 0)
