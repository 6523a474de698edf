"""The command line: thin, and lazy, so that ``--help`` costs nothing; a command imports what it needs when it runs.

Linux and macOS are supported. Windows lacks ``fcntl`` (locks), ``pthread_sigmask`` and ``forkserver`` (sweeps), so
every command is refused there at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from cispbench.harness.commands.check import check
from cispbench.harness.commands.data import data
from cispbench.harness.commands.doctor import doctor
from cispbench.harness.commands.importing import import_
from cispbench.harness.commands.leaderboard import leaderboard
from cispbench.harness.commands.ledger import ledger
from cispbench.harness.commands.method import method
from cispbench.harness.commands.plots import panels, plots
from cispbench.harness.commands.run import run
from cispbench.harness.commands.show import list_, show
from cispbench.harness.commands.status import status
from cispbench.harness.commands.submission import accept, score, submit
from cispbench.harness.commands.sweep import sweep
from cispbench.harness.commands.table import table
from cispbench.harness.machine.output import check_output, escaped_streams
from cispbench.splits.errors import CispbenchError
from cispbench.splits.plugins import BrokenPluginWarning


def _show_warning(usual: Callable[..., None], message: Warning, kind: type[Warning], *place: Any) -> None:
    """Show our own warnings in our words, all others as usual."""
    if issubclass(kind, BrokenPluginWarning):
        click.echo(f"Warning: {message}", err=True)
    else:
        usual(message, kind, *place)


class CommandGroup(click.Group):
    """A group that turns our errors into ``Error: ...`` and their exit code, and escapes what it prints."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; 1 where standard output is closed, full or broken."""
        with escaped_streams():
            try:
                check_output()
                return super().main(*args, **extra)
            except CispbenchError as error:  # outside of ``invoke``: also --help can meet a full disk
                click.echo(f"Error: {error}", err=True)
                sys.exit(error.exit_code)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Make the context; with colour, so that click strips no escape sequence of a name: it is shown."""
        return super().make_context(*args, **extra, color=True)

    def invoke(self, context: click.Context) -> Any:
        """Run the command; 1 for an error of the run, 2 for one of usage."""
        with warnings.catch_warnings():
            warnings.simplefilter("default", BrokenPluginWarning)
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            return self._invoke(context)

    def _invoke(self, context: click.Context) -> Any:
        try:
            if sys.platform == "win32":
                raise CispbenchError("cispbench runs on Linux and macOS, not on Windows itself.",
                                     hint="Install it in WSL 2, where Windows has a Linux.")  # fmt: skip
            return super().invoke(context)
        except CispbenchError as error:
            click.echo(f"Error: {error}", err=True)
            context.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("\nInterrupted. What is finished is kept; the same command goes on from there.", err=True)
            context.exit(1)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cispbench")
def main() -> None:
    """Train, test and compare methods of class-incremental semantic segmentation.

    \b
    Start here (no data needed, four minutes on two cores):
      cispbench run --method mbs --setting overlapped-100-10
    """


for command in (
    accept, check, data, doctor, import_, leaderboard, ledger, list_, method, panels, plots, run, score, show, status,
    submit, sweep, table,
):  # fmt: skip
    main.add_command(command)


if __name__ == "__main__":
    sys.exit(main())
