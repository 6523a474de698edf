"""The command line: thin, and lazy, so that ``--help`` costs nothing; a command imports what it needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cispbench.harness.commands.check import check
from cispbench.harness.commands.data import data
from cispbench.harness.commands.doctor import doctor
from cispbench.harness.commands.importing import import_
from cispbench.harness.commands.leaderboard import leaderboard
from cispbench.harness.commands.ledger import ledger
from cispbench.harness.commands.method import method
from cispbench.harness.commands.plots import panels, plots
from cispbench.harness.commands.submission import accept, score, submit
from cispbench.harness.commands.sweep import status, sweep
from cispbench.splits.errors import CispbenchError, StoreError, UsageError

OUT = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True,
    help="Folder of the records (one small JSON a step, below runs/).",
)  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
PROTOCOL = click.option("--protocol", default="strict", show_default=True, help="How scores are computed.")


class CommandGroup(click.Group):
    """A group that turns our errors into ``Error: ...`` and their exit code."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command; 1 for an error of the run, 2 for one of usage."""
        try:
            return super().invoke(context)
        except CispbenchError as error:
            click.echo(f"Error: {error}", err=True)
            context.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("\nInterrupted. What is finished is kept; the same command goes on from there.", err=True)
            context.exit(1)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="cispbench")
def main() -> None:
    """Train, test and compare methods of class-incremental semantic segmentation.

    \b
    Start here (no data needed, four minutes on two cores):
      cispbench run --method mbs --setting overlapped-100-10
    """


@main.command()
@click.option("--method", required=True, help="Method to train, see `cispbench list methods`.")
@click.option("--setting", required=True, help="<scenario>-<task>, see `cispbench list settings`.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random choices.")
@click.option("--profile", help="paper (the published recipe), mini (small real data) or quick (built-in scenes).")
@click.option("--model", help="Model instead of the recipe's, see `cispbench list models`.")
@click.option("--weights", help="Pre-trained encoder: a file, a name from `cispbench list weights`, or none.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder with VOC2012 or ADEChallengeData2016.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe: optim.lr=0.002.")
@OUT
@click.option("--steps-dir", type=click.Path(path_type=Path), help="Folder of weights and checkpoints. [.cispbench]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--devices", type=click.IntRange(min=1), metavar="N", help="Train each step on so many GPUs (processes, "
              "with --device cpu); the recipe's batch is shared among them. [1]")  # fmt: skip
@click.option("--micro-batch", type=click.IntRange(min=1), metavar="M", help="Hold at most so many images at once on a "
              "device, and add up the gradients of the batch. [all]")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=0), help="Processes that load images, for each device. [0 on the "
              "CPU]")  # fmt: skip
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS",
              help="How long to wait for another process that trains the same step. [until it ends]")  # fmt: skip
@click.option("--start-from", metavar="KEY", help="Go on from a step that `cispbench import checkpoint` made.")
@click.option("--until", type=click.IntRange(min=0), metavar="STEP", help="Stop after this step. [the last one]")
@PROTOCOL
@click.option("--quiet", is_flag=True, help="No progress, only the table.")
@JSON
def run(**choices: Any) -> None:
    """Train a method through all steps of a setting and print old / new / all mIoU.

    Without --profile, real data found means `paper` and none found means `quick`. The same command again resumes a
    broken run, and returns at once if it is finished. A run that meets 5 losses in a row that are no finite numbers
    stops; single ones are skipped, and counted in its records.

    \b
    Example:
      cispbench run --method mbs --setting overlapped-15-1
      cispbench run --method mib --setting disjoint-15-5 --data-root /data --set optim.batch=12
      cispbench run --method mbs --setting overlapped-15-1 --devices 4 --micro-batch 3
    """
    from cispbench.harness.commands.run import launch

    text = launch(**choices)
    if text:  # of several processes the first one alone has something to say
        click.echo(text)


@main.command("list")
@click.argument("what", metavar="methods|settings|models|profiles|protocols|weights|quirks")
@JSON
def list_(what: str, as_json: bool) -> None:
    """List what there is to choose from; `quirks` are the departures of released code, with their options.

    \b
    Example:
      cispbench list settings
    """
    from cispbench.harness.commands.listing import listing

    click.echo(listing(what, as_json))


@main.command()
@click.argument("method")
@click.option("--setting", default="overlapped-15-1", show_default=True, help="Setting the recipe is for.")
@click.option("--profile", default="paper", show_default=True, help="paper, mini or quick.")
@click.option("--model", help="Model instead of the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe.")
@click.option("--ablation", is_flag=True, help="Print the method's parts, switched off one by one, instead.")
@JSON
def show(method: str, ablation: bool, as_json: bool, **choices: Any) -> None:
    """Print a method's recipe as it would run, the source of every value, and the quirks of released code.

    \b
    Example:
      cispbench show mbs --setting overlapped-100-10 --profile paper
      cispbench show mbs --ablation
    """
    from cispbench.harness.commands.showing import show_ablation, show_recipe

    click.echo(show_ablation(method, as_json=as_json) if ablation else show_recipe(method, as_json=as_json, **choices))


@main.command()
@OUT
@PROTOCOL
@click.option("--compare-protocols", is_flag=True, help="Each run under every protocol, side by side.")
@click.option("--method", metavar="GLOB", help="Only runs of these methods, for example 'mi*'.")
@click.option("--setting", metavar="GLOB", help="Only runs on these settings, for example 'overlapped-15-*'.")
@click.option("--run", metavar="KEY", help="Only the run whose key starts so (it ends the name of a run's folder).")
@click.option("--format", "form", metavar="NAME", help="terminal, markdown, latex, csv, json or html. [markdown]")
@click.option("--columns", metavar="NAME,...", help="Numbers below each setting. [old,new,all,seeds]")
@click.option("--metrics", is_flag=True, help="Add the continual metrics to the columns: forgetting and others.")
@click.option("--decimals", type=click.IntRange(0, 10), default=2, show_default=True, help="Decimals of all numbers.")
@click.option("--published/--no-published", default=None, help="Add the differences to published numbers, and their "
              "sources; or leave published numbers out. [in brackets, on full data]")  # fmt: skip
@click.option("--runs", "each", is_flag=True, help="One row a run, not one for all its seeds.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to FILE; its ending (.md, .tex, "
              ".csv, .json, .html, .txt) tells the format.", metavar="FILE")  # fmt: skip
@JSON
def table(
    out: Path, protocol: str, compare_protocols: bool, as_json: bool, form: str | None, output: Path | None,
    columns: str | None, metrics: bool, decimals: int, published: bool | None, each: bool, **selected: str | None,
) -> None:  # fmt: skip
    """Print the finished runs of a store: methods below each other, settings side by side, mean over seeds.

    Scores are computed from the stored confusion matrices; nothing is run again, whatever the protocol. --json is
    --format json; JSON and CSV hold every number, unrounded.

    \b
    Example:
      cispbench table --out results --protocol mbs24
      cispbench table --setting 'overlapped-*' --metrics --format terminal
      cispbench table --published --output table.tex
      cispbench table --compare-protocols --method mbs --setting 'overlapped-*'
    """
    from cispbench.reports.tables.grid import table_options
    from cispbench.reports.tables.protocols import protocols_json, protocols_table
    from cispbench.reports.tables.render import choose_format, render_store, write_text
    from cispbench.reports.tables.runs import Selection
    from cispbench.results.protocols import load_protocol
    from cispbench.results.store import Store

    load_protocol(protocol)
    explicit = click.get_current_context().get_parameter_source("protocol") is not ParameterSource.DEFAULT
    if compare_protocols and explicit:
        raise UsageError("--compare-protocols shows every protocol.", hint=f"Leave --protocol {protocol} out.")
    form = choose_format(form, output, as_json)
    if compare_protocols and form not in ("markdown", "json"):
        raise UsageError(f"--compare-protocols has no format {form!r}.", hint="It has markdown and json.")
    options = table_options(columns, metrics, decimals, published, form)
    store, selection = Store(out), Selection(**selected)
    if not store.path.is_dir():
        raise StoreError(f"the store {out} does not exist.", hint="Name the folder that --out of the runs named.")
    if compare_protocols:
        text = protocols_json(store, selection) if form == "json" else protocols_table(store, selection)
    else:
        marked = output is None and sys.stdout.isatty()
        text = render_store(store, form, protocol, selection, options=options, each=each, marked=marked)
    if output is None:
        click.echo(text, nl=bool(text) and not text.endswith("\n"))
    else:
        write_text(output, text)


for group in (
    accept, check, data, doctor, import_, leaderboard, ledger, method, panels, plots, score, status, submit, sweep,
):  # fmt: skip
    main.add_command(group)


if __name__ == "__main__":
    sys.exit(main())
