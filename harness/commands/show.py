"""``cispbench list`` and ``cispbench show``: what there is to choose from, and a recipe as it would run."""

from __future__ import annotations

import sys

import click

from cispbench.harness.commands.options import JSON, MODEL, OVERRIDES, run_request
from cispbench.harness.runs.request import RunRequest


@click.command("list")
@click.argument("what", metavar="methods|settings|models|profiles|protocols|weights|quirks")
@JSON
def list_(what: str, as_json: bool) -> None:
    """List what there is to choose from.

    `quirks` are where released code departs from its paper, each with the option that switches it.

    \b
    Example:
      cispbench list settings
    """
    from cispbench.harness.commands.listing import listing

    click.echo(listing(what, as_json, sys.stdout.isatty()))


@click.command()
@run_request(
    click.argument("method"),
    click.option("--setting", default="overlapped-15-1", show_default=True, help="Setting the recipe is for."),
    click.option("--profile", default="paper", show_default=True, help="paper, mini or quick."),
    MODEL,
    OVERRIDES,
)
@click.option("--ablation", is_flag=True, help="Print the method's parts, switched off one by one, instead.")
@JSON
def show(request: RunRequest, ablation: bool, as_json: bool) -> None:
    """Print a method's recipe as it would run, with its sources.

    Each value has its source beside it. Below are the quirks of released code, and how to switch them.

    \b
    Example:
      cispbench show mbs --setting overlapped-100-10 --profile paper
      cispbench show mbs --ablation
    """
    from cispbench.harness.commands.showing import show_ablation, show_recipe

    click.echo(show_ablation(request.method, as_json=as_json) if ablation else show_recipe(request, as_json=as_json))
