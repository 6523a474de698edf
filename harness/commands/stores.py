"""The store of records that a report reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cispbench.splits.errors import StoreError

if TYPE_CHECKING:
    from cispbench.results.store import Store


def existing_store(out: Path) -> Store:
    """Return the store of ``--results``. Raises StoreError if there is none: a wrong folder must not look empty."""
    from cispbench.results.store import Store

    if not out.is_dir():
        raise StoreError(f"the store {out} does not exist.", hint="Give --results the --out of the runs.")
    return Store(out)
