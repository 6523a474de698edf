"""``cispbench ledger``: Check and show the published numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cispbench.harness.commands.options import JSON

Command = TypeVar("Command", bound=Callable[..., Any])


def _filters(command: Command) -> Command:
    """Add the options that choose rows, besides the method."""
    options = (
        click.option("--setting", metavar="GLOB", help="Only this setting, or all like 'overlapped-15-*'."),
        click.option("--dataset", help="Only voc or ade."),
        click.option("--kind", help="Only reported (by the paper that ran it), excerpted or reproduced rows."),
        click.option("--source", metavar="TEXT", help="Only rows whose source holds this text."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def ledger() -> None:
    """Check and show the published numbers."""


@ledger.command()
@click.option("--method", help="Only this method, by its published or its registry name.")
@_filters
@click.option("--by", default="source", show_default=True, help="Count by source, method or both.")
@click.option("--rows", "each", is_flag=True, help="List every row with all readings that fit.")
@JSON
def lint(by: str, each: bool, as_json: bool, **chosen: str | None) -> None:
    """Say of each published row what its old, new and all can be the means of.

    Background may be in neither, in both, or in all alone; a row that fits none is listed with the arithmetic that
    fails. What the lint finds in published numbers is no failure: the exit code is 0.

    \b
    Example:
      cispbench ledger lint
      cispbench ledger lint --method mib --kind reported --rows
    """
    from cispbench.reports.ledger.lint import lint_json, lint_text
    from cispbench.reports.ledger.rows import Filter

    click.echo(lint_json(Filter(**chosen)) if as_json else lint_text(Filter(**chosen), by, each))


@ledger.command()
@click.option("--method", required=True, help="Method, by its published or its registry name.")
@_filters
@JSON
def show(as_json: bool, **chosen: str | None) -> None:
    """Print what is published on a method: old, new and all by setting, with kind, backbone and source.

    \b
    Example:
      cispbench ledger show --method mbs
      cispbench ledger show --method plop --setting 'overlapped-15-*' --kind reported
    """
    from cispbench.reports.ledger.rows import Filter, show_json, show_text

    click.echo(show_json(Filter(**chosen)) if as_json else show_text(Filter(**chosen)))
