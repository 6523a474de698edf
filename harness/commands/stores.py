"""The store of records that a report reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cispbench.harness.commands.options import is_given
from cispbench.splits.errors import StoreError

if TYPE_CHECKING:
    from cispbench.results.store import Store


def existing_store(out: Path) -> Store:
    """Return the store of ``--results``, and note on stderr how many of its records carry no checksum.

    Raises StoreError if there is none: a wrong folder must not look empty.
    """
    from cispbench.results.audit import count_unchecked

    store = named_store(out)
    unchecked, records = count_unchecked(store)
    if unchecked:
        click.echo(
            f"Note: {unchecked} of {records} records in {out} carry no checksum, as earlier versions wrote them: damage"
            f" cannot be seen. `cispbench check --store --rewrite --results {out}` adds it.",
            err=True,
        )
    return store


def named_store(out: Path) -> Store:
    """Return the store of a folder. Raises StoreError if there is none."""
    from cispbench.results.store import Store

    if not out.is_dir():
        raise StoreError(
            f"the store {out} does not exist.",
            hint="Name the folder of the records by --results. Runs write to cispbench-results unless --out names "
            "another.",
        )
    return Store(out)


def reported_store(out: Path) -> Store:
    """Return a store in which nothing need be measured: the report shows published numbers, or may be empty.

    The default of ``--results`` need not exist; a folder that was named must, see ``existing_store``.
    """
    from cispbench.results.store import Store

    return existing_store(out) if is_given("out") or out.is_dir() else Store(out)
