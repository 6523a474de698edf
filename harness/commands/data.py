"""``cispbench data``: Check and index data sets."""

from __future__ import annotations

import click


@click.group()
def data() -> None:
    """Check and index data sets."""
