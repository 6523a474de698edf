"""``cispbench status``: how far sweeps and runs are."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from cispbench.harness.commands.options import JSON, RESULTS, STEPS_DIR, collected
from cispbench.harness.commands.sweep_selection import SELECTION, SweepSelection


@click.command()
@collected(SweepSelection, "selection", *SELECTION)
@RESULTS
@STEPS_DIR
@JSON
def status(selection: SweepSelection, out: Path, steps_dir: Path | None, as_json: bool) -> None:
    """Show what is being trained, and which runs have records.

    It reads the stores alone. It may be asked from another shell or machine while sweeps and runs are under way.

    \b
    Example:
      cispbench status
      cispbench status --methods mib --settings 'overlapped-15-*' --json
    """
    from cispbench.harness.commands.sweep_status import status_of
    from cispbench.harness.runs.step_store import default_steps_dir
    from cispbench.reports.tables.terminal import table_text

    found = status_of(out, steps_dir or default_steps_dir(), selection.request())
    table = partial(table_text, terminal=sys.stdout.isatty())
    click.echo(found.as_json() if as_json else found.as_text(table))
    if not (found.runs or as_json):
        click.echo(f"No such run has a record in {out}. --results names another folder; `cispbench run` starts a run.")
