"""``cispbench import``: Turn checkpoints of released code into steps of a run."""

from __future__ import annotations

import click


@click.group("import")
def import_() -> None:
    """Turn checkpoints of released code into steps of a run."""
