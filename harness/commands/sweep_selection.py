"""Which runs ``cispbench sweep`` trains and ``cispbench status`` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cispbench.harness.commands.options import MODEL, PROFILE

if TYPE_CHECKING:
    from cispbench.harness.sweep.matrix import SweepRequest

SELECTION = (
    click.option("--methods", metavar="A,B", help="Methods, see `cispbench list methods`."),
    click.option("--settings", metavar="A,B", help="Settings, patterns such as 'overlapped-*', and paper-table."),
    click.option("--seeds", metavar="0,1", help="Seeds. [sweep: 0; status: all]"),
    PROFILE,
    MODEL,
)


@dataclass(frozen=True)
class SweepSelection:
    """Which runs, in the words of the command line. ``file``: a sweep file, whose entries the other words replace."""

    methods: str | None
    settings: str | None
    seeds: str | None
    profile: str | None
    model: str | None
    file: Path | None = None
    overrides: tuple[str, ...] = ()

    def request(self) -> SweepRequest:
        """Return what is asked for. Raises UsageError."""
        from cispbench.harness.sweep.matrix import SweepRequest, read_sweep_file, split_seeds, split_words

        given = SweepRequest(
            methods=None if self.methods is None else split_words(self.methods),
            settings=None if self.settings is None else split_words(self.settings),
            seeds=None if self.seeds is None else split_seeds(self.seeds),
            profile=self.profile, model=self.model, set=self.overrides or None,
        )  # fmt: skip
        return given if self.file is None else given.over(read_sweep_file(self.file))
