"""Options that several commands share, each written once; and what collects many of them into one object.

Click passes a command its options one by one. ``collected`` gathers those that are fields of a frozen dataclass, so
that a command takes ``request: RunRequest`` in place of a dozen parameters, and passes it on as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cispbench.harness.runs.request import RunRequest
from cispbench.splits.errors import UsageError

if TYPE_CHECKING:
    from cispbench.reports.tables.runs import Selection

Command = Callable[..., None]

# The records that come with cispbench lie in its own folder results: in a checkout, runs must not mix with them unless
# somebody says so.
_RECORDS: dict[str, Any] = {
    "type": click.Path(path_type=Path, file_okay=False), "metavar": "DIR", "default": Path("cispbench-results"),
    "show_default": True, "envvar": "CISPBENCH_RESULTS", "show_envvar": True,
}  # fmt: skip
OUT = click.option("--out", **_RECORDS, help="Folder that the records are written to (one small JSON a step).")
RESULTS = click.option(
    "--results", "--out", "out", **_RECORDS, help="Folder of the records, as --out of the runs named it."
)
STEPS_DIR = click.option(
    "--steps-dir",
    type=click.Path(path_type=Path),
    help="Folder of weights, checkpoints and logs. [$CISPBENCH_STEPS, else .cispbench]",
)
DATA_ROOT = click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    help="Folder with VOC2012 or ADEChallengeData2016. [$CISPBENCH_DATA, else data]",
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
LOADERS = click.option(
    "--workers", "loaders", type=click.IntRange(min=0),
    help="Processes that load images, for each device. [0 on the CPU]",
)  # fmt: skip
PROTOCOL = click.option("--protocol", default="strict", show_default=True, help="How scores are computed.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
QUIET = click.option("--quiet", is_flag=True, help="No progress: the table, and lines of trouble.")
PROFILE = click.option(
    "--profile", help="paper (the published recipe), mini (small real data) or quick (built-in scenes)."
)
MODEL = click.option("--model", help="Model instead of the recipe's, see `cispbench list models`.")
WEIGHTS = click.option("--weights", help="Pre-trained encoder: a file, a name from `cispbench list weights`, or none.")
OVERRIDES = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe: optim.lr=0.002."
)
MICRO_BATCH = click.option(
    "--micro-batch", type=click.IntRange(min=1), metavar="M",
    help="Most images that a device holds at once; the gradients of the batch are added up. [all]",
)  # fmt: skip
METHOD_GLOB = click.option("--method", metavar="GLOB", help="Only runs of these methods, for example 'mi*'.")
SETTING_GLOB = click.option(
    "--setting", metavar="GLOB", help="Only runs on these settings, for example 'overlapped-15-*'."
)
RUN_KEY = click.option(
    "--run", metavar="KEY", help="Only the run whose key starts like this; the key ends the name of the run's folder."
)


@dataclass(frozen=True)
class RunFilter:
    """Which runs of a store a command takes: patterns of names, and how a run's key starts. None takes all."""

    method: str | None = None
    setting: str | None = None
    run: str | None = None

    def selection(self) -> Selection:
        """Return the filter as reports take it. Raises SettingError."""
        from cispbench.reports.tables.runs import Selection

        return Selection(method=self.method, setting=self.setting, run=self.run)


@dataclass(frozen=True)
class Printing:
    """How a command prints its result: scores under which protocol, with progress or not, as JSON or as text."""

    protocol: str
    quiet: bool
    as_json: bool


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return one decorator for several options; ``--help`` lists them in the order given."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def collected(kind: type[Any], name: str, *options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds ``options`` and passes those that are fields of ``kind`` as one argument ``name``.

    It takes those of its fields, too, that stand above or below it: ``--help`` lists all options as they are written.
    A field without an option keeps its default.
    """
    names = {field.name for field in fields(kind)}

    def decorate(command: Command) -> Command:
        @wraps(command)
        def collect(**chosen: Any) -> None:
            mine = {key: chosen.pop(key) for key in names & chosen.keys()}
            command(**{name: kind(**mine)}, **chosen)

        return together(*options)(collect)

    return decorate


PRINTING = collected(Printing, "printing", PROTOCOL, QUIET, JSON)
RECIPE = (PROFILE, MODEL, OVERRIDES)  # what decides a recipe, besides method and setting


def run_request(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that passes a ``RunRequest`` as the argument ``request``."""
    return collected(RunRequest, "request", *options)


def is_given(name: str) -> bool:
    """Return whether a parameter of the command that runs is somebody's choice, not its default."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def refuse_given(names: Collection[str], beside: str) -> None:
    """Raise UsageError for an option among ``names`` that was given; ``beside``: what it does not go with."""
    for option in click.get_current_context().command.params:
        if option.name in names and is_given(option.name):
            raise UsageError(f"{option.opts[0]} does not go with {beside}.", hint="Leave one of them out.")
