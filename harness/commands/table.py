"""``cispbench table``: the finished runs of a store."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from cispbench.harness.commands.options import (
    JSON,
    METHOD_GLOB,
    PROTOCOL,
    RESULTS,
    RUN_KEY,
    SETTING_GLOB,
    RunFilter,
    collected,
    is_given,
    refuse_given,
)
from cispbench.splits.errors import UsageError

_NOT_WITH_PAPER = (
    "compare_protocols", "method", "setting", "run", "columns", "metrics", "decimals", "published", "each",
)  # fmt: skip


@dataclass(frozen=True)
class TableNumbers:
    """Which numbers a table shows, and how."""

    columns: str | None
    metrics: bool
    decimals: int
    published: bool | None
    paper: str | None


@dataclass(frozen=True)
class TableFile:
    """The table's format and file; ``output``: None prints it."""

    form: str | None
    output: Path | None
    as_json: bool


@click.command()
@RESULTS
@PROTOCOL
@click.option("--compare-protocols", is_flag=True, help="Each run under every protocol, side by side.")
@collected(RunFilter, "runs", METHOD_GLOB, SETTING_GLOB, RUN_KEY)
@click.option(
    "--format",
    "form",
    metavar="NAME",
    help="terminal, markdown, latex, csv, json or html. [terminal; markdown in a pipe]",
)
@collected(
    TableNumbers, "numbers",
    click.option("--columns", metavar="NAME,...", help="Numbers below each setting. [old,new,all,seeds]"),
    click.option("--metrics", is_flag=True, help="Add the continual metrics to the columns: forgetting and others."),
    click.option("--decimals", type=click.IntRange(0, 10), default=2, show_default=True,
                 help="Decimals of all numbers."),
    click.option("--published/--no-published", default=None, help="Add the differences to published numbers, and "
                 "their sources; or leave published numbers out. [in brackets, on full data]"),
    click.option("--paper", metavar="METHOD", help="All that is known of the numbers of one published method: its own, "
                 "quoted, run by others, measured here."),
)  # fmt: skip
@click.option("--runs", "each", is_flag=True, help="One row for each run, not one for all seeds.")
@collected(
    TableFile, "file",
    click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                 help="Write to FILE; its ending (.md, .tex, .csv, .json, .html, .txt) tells the format."),
    JSON,
)  # fmt: skip
def table(
    out: Path, protocol: str, compare_protocols: bool, runs: RunFilter, numbers: TableNumbers, each: bool,
    file: TableFile,
) -> None:  # fmt: skip
    """Print the finished runs of a store as a table.

    Methods stand below each other, settings side by side; numbers are means over seeds. Scores are computed from
    the stored confusion matrices; nothing is run again, whatever the protocol. --json is --format json; JSON and
    CSV hold every number, unrounded.

    \b
    Example:
      cispbench table --results measured --protocol mbs24
      cispbench table --setting 'overlapped-*' --metrics --format markdown
      cispbench table --published --output table.tex
      cispbench table --paper mbs --format terminal
      cispbench table --compare-protocols --method mbs --setting 'overlapped-*'
    """
    from cispbench.harness.commands.stores import reported_store
    from cispbench.reports.leaderboard.board import load_leaderboard
    from cispbench.reports.leaderboard.paper import render_paper
    from cispbench.reports.tables.grid import table_options
    from cispbench.reports.tables.protocols import protocols_json, protocols_table
    from cispbench.reports.tables.render import choose_format, render_store, write_text
    from cispbench.results.protocols import load_protocol

    load_protocol(protocol)
    # The default protocol is nobody's choice, so that only one that is named contradicts --compare-protocols.
    if compare_protocols and is_given("protocol"):
        raise UsageError("--compare-protocols shows every protocol.", hint=f"Leave --protocol {protocol} out.")
    form = choose_format(file.form, file.output, file.as_json, sys.stdout.isatty())
    if compare_protocols and form not in ("terminal", "markdown", "json"):
        raise UsageError(f"--compare-protocols has no format {form!r}.", hint="It has terminal, markdown and json.")
    if numbers.paper is not None:
        refuse_given(_NOT_WITH_PAPER, "--paper")
    options = table_options(numbers.columns, numbers.metrics, numbers.decimals, numbers.published, form)
    selection, store = runs.selection(), reported_store(out)
    marked = file.output is None and sys.stdout.isatty()
    if numbers.paper is not None:
        text = render_paper(load_leaderboard(store, protocol), numbers.paper, form)
    elif compare_protocols:
        terminal = form == "terminal"
        text = protocols_json(store, selection) if form == "json" else protocols_table(store, selection, terminal)
    else:
        text = render_store(store, form, protocol, selection, options=options, each=each, marked=marked)
    if file.output is None:
        click.echo(text, nl=bool(text) and not text.endswith("\n"))
    else:
        write_text(file.output, text)
