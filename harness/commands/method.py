"""``cispbench method``: Check methods, built-in and third-party ones, against the contract."""

from __future__ import annotations

import click


@click.group()
def method() -> None:
    """Check methods, built-in and third-party ones, against the contract."""
