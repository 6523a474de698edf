"""The store of records that a report reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from cispbench.splits.errors import StoreError

if TYPE_CHECKING:
    from cispbench.results.store import Store


def existing_store(out: Path) -> Store:
    """Return the store below ``--out``. Raises StoreError if there is none: a wrong folder must not look empty."""
    from cispbench.results.store import Store

    if not out.is_dir():
        raise StoreError(f"the store {out} does not exist.", hint="Name the folder that --out of the runs named.")
    return Store(out)


def reported_store(out: Path) -> Store:
    """Return the store of a report that shows published numbers, too: nothing need be measured where it is made.

    The default of ``--out`` need not exist; a folder that was named must, see ``existing_store``.
    """
    from cispbench.results.store import Store

    named = click.get_current_context().get_parameter_source("out") is not ParameterSource.DEFAULT
    return existing_store(out) if named or out.is_dir() else Store(out)
