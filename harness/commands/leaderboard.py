"""``cispbench leaderboard``: published and measured numbers side by side, as a page to browse and as Markdown."""

from __future__ import annotations

from pathlib import Path

import click

from cispbench.harness.commands.options import RESULTS


@click.command()
@RESULTS
@click.option("--protocol", default="strict", show_default=True, help="How measured scores are computed.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Where leaderboard.md and leaderboard/ are written. [the folder of --results]")  # fmt: skip
@click.option("--readme", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write nothing but the leaderboard's section of this README.")  # fmt: skip
def leaderboard(out: Path, protocol: str, output: Path | None, readme: Path | None) -> None:
    """Write the leaderboard of measured and published numbers.

    leaderboard.md is text; leaderboard/index.html opens from disk, without server or network: sort, filter, open any
    number to see where it comes from, save what is shown, send its address. What was measured on mini or synthetic data
    has pages of its own, and papers.html shows all numbers of each published method. Without a store the published
    numbers are shown alone.

    \b
    Example:
      cispbench leaderboard
      cispbench leaderboard --protocol mbs24 --output site
      cispbench leaderboard --readme README.md
    """
    from cispbench.harness.commands.stores import reported_store
    from cispbench.reports.leaderboard.board import load_leaderboard
    from cispbench.reports.leaderboard.page import write_leaderboard
    from cispbench.reports.leaderboard.text import update_readme
    from cispbench.results.protocols import load_protocol
    from cispbench.splits.errors import UsageError

    load_protocol(protocol)
    if readme is not None and output is not None:
        raise UsageError("--readme and --output do not go together.", hint="Leave one of them out.")
    found = load_leaderboard(reported_store(out), protocol)
    for note in found.notes:
        click.echo(note, err=True)
    if readme is not None:
        click.echo(f"{'Written' if update_readme(found, readme) else 'Unchanged'}: {readme}")
        return
    for path in write_leaderboard(found, output or out):
        click.echo(f"Written: {path}")
