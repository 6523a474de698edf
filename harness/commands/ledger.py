"""``cispbench ledger``: Check and show the published numbers."""

from __future__ import annotations

import click


@click.group()
def ledger() -> None:
    """Check and show the published numbers."""
