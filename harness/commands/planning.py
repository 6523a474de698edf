"""The option ``--plan`` of ``run`` and ``sweep``, and what it prints."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from cispbench.harness.commands.options import Printing
from cispbench.splits.errors import UsageError

if TYPE_CHECKING:
    from cispbench.harness.cost.devices import Device
    from cispbench.harness.sweep.graph import Graph
    from cispbench.harness.sweep.planning import SweepPlan

PLAN = click.option("--plan", "plan_only", is_flag=True, help="Print the graph of steps and its cost; train nothing.")
ON = click.option(
    "--on",
    metavar="A,B",
    help="With --plan: what it costs on these devices, as h100,rtx4090,cpu. Imports torch: seconds.",
)


def priced_devices(on: str | None, plan_only: bool) -> tuple[Device, ...] | None:
    """Return the devices of ``--on``, None without it. Raises UsageError."""
    if on is None:
        return None
    if not plan_only:
        raise UsageError(f"--on {on} prices a plan, and this would train.", hint="Add --plan.")
    from cispbench.harness.cost.devices import named_devices

    return named_devices(on)


def print_plan(
    plan: SweepPlan, graph: Graph, printing: Printing, devices: tuple[Device, ...] | None, *, divisible: bool
) -> None:
    """Print a plan as text or as JSON, with its price on ``devices`` (None: without one). Raises CispbenchError.

    ``divisible``: whether the command lets several devices share a step.
    """
    from cispbench.harness.machine.progress import make_view
    from cispbench.harness.sweep.showing import plan_json, plan_text
    from cispbench.reports.tables.terminal import table_text

    table = partial(table_text, terminal=sys.stdout.isatty())
    if devices is None:
        click.echo(plan_json(plan, graph) if printing.as_json else plan_text(plan, graph, table))
        return
    # Not above: they import torch, which a plan without a price spares its user.
    from cispbench.harness.sweep.price_showing import price_json, price_text
    from cispbench.harness.sweep.pricing import price_graph

    with make_view(quiet=printing.quiet or printing.as_json) as view:
        price = price_graph(graph, devices, view, by_step=len(plan.runs) == 1, divisible=divisible)
    if printing.as_json:
        click.echo(plan_json(plan, graph, price_json(price)))
    else:
        click.echo(plan_text(plan, graph, table, price_text(price, table)))
