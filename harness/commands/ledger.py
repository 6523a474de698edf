"""``cispbench ledger``: Check and show the published numbers."""

from __future__ import annotations

import click

from cispbench.harness.commands.options import JSON, together

METHOD = click.option("--method", help="Only this method, by its published or its registry name.")
# The options that choose rows, besides the method; the fields of the ledger's own ``Filter``.
FILTERS = together(
    click.option("--setting", metavar="GLOB", help="Only this setting, or all like 'overlapped-15-*'."),
    click.option("--dataset", help="Only voc or ade."),
    click.option("--kind", help="Only own, quoted, re-run or 'not known' rows; `ledger show` explains them."),
    click.option("--source", metavar="TEXT", help="Only rows whose source holds this text."),
)


@click.group()
def ledger() -> None:
    """Check and show the published numbers."""


@ledger.command()
@METHOD
@FILTERS
@click.option("--by", default="source", show_default=True, help="Count by source, method or both.")
@click.option("--rows", "each", is_flag=True, help="List every row with all readings that fit.")
@JSON
def lint(by: str, each: bool, as_json: bool, **filters: str | None) -> None:
    """Say what each published row's old, new and all are means of.

    Background may be in neither, in both, or in all alone; a row that fits none is listed with the arithmetic that
    fails. What the lint finds in published numbers is no failure: the exit code is 0.

    \b
    Example:
      cispbench ledger lint
      cispbench ledger lint --method mib --kind own --rows
    """
    from cispbench.reports.ledger.lint import lint_json, lint_text
    from cispbench.reports.ledger.rows import Filter

    click.echo(lint_json(Filter(**filters)) if as_json else lint_text(Filter(**filters), by, each))


@ledger.command()
@METHOD
@FILTERS
@JSON
def show(as_json: bool, **filters: str | None) -> None:
    """Print what is published on a method or a setting.

    Each row is a result's old, new and all, with its kind, network and source. Own numbers stand first, and within a
    kind and network the best.

    \b
    Example:
      cispbench ledger show --method mbs
      cispbench ledger show --setting overlapped-15-1
      cispbench ledger show --method plop --setting 'overlapped-15-*' --kind own
    """
    from cispbench.reports.ledger.rows import Filter, show_json, show_text

    click.echo(show_json(Filter(**filters)) if as_json else show_text(Filter(**filters)))
