"""The store of records that a report reads, and its audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from cispbench.splits.errors import StoreError

if TYPE_CHECKING:
    from cispbench.results.audit import Audit
    from cispbench.results.store import Store


def existing_store(out: Path) -> Store:
    """Return the store of ``--results``, and note on stderr how many of its records carry no checksum.

    Raises StoreError if there is none: a wrong folder must not look empty.
    """
    from cispbench.results.audit import count_unchecked

    store = _store(out)
    unchecked, records = count_unchecked(store)
    if unchecked:
        click.echo(
            f"Note: {unchecked} of {records} records in {out} carry no checksum, as earlier versions wrote them: damage"
            f" cannot be seen. `cispbench check --store --rewrite --results {out}` adds it.",
            err=True,
        )
    return store


def audit_stores(out: Path, *, rewrite: bool, as_json: bool) -> bool:
    """Print what an audit of the store of records finds, and return whether all is well.

    ``rewrite``: give a checksum to the records that carry none, if all is well. Raises StoreError.
    """
    from cispbench.results.audit import audit_records, rewrite_records

    store = _store(out)
    found = audit_records(store)
    if rewrite and not found.problems:
        rewrite_records(found)
    rewritten = len(found.unchecked) if rewrite and not found.problems else 0
    click.echo(_audit_json(found, rewritten) if as_json else _audit_text(found, out, rewritten, asked=rewrite))
    return not found.problems


def _store(out: Path) -> Store:
    from cispbench.results.store import Store

    if not out.is_dir():
        raise StoreError(f"the store {out} does not exist.", hint="Give --results the --out of the runs.")
    return Store(out)


def reported_store(out: Path) -> Store:
    """Return the store of a report that shows published numbers, too: nothing need be measured where it is made.

    The default of ``--out`` need not exist; a folder that was named must, see ``existing_store``.
    """
    from cispbench.results.store import Store

    named = click.get_current_context().get_parameter_source("out") is not ParameterSource.DEFAULT
    return existing_store(out) if named or out.is_dir() else Store(out)


def _audit_json(found: Audit, rewritten: int) -> str:
    problems = [{"file": str(entry.path), "what": entry.what, "action": entry.action} for entry in found.problems]
    content = {
        "records": found.records, "runs": found.runs, "without_checksum": len(found.unchecked) - rewritten,
        "rewritten": rewritten, "problems": problems,
    }  # fmt: skip
    return json.dumps(content, allow_nan=False)


def _audit_text(found: Audit, out: Path, rewritten: int, *, asked: bool) -> str:
    lines = [f"{entry.what} {entry.action}" for entry in found.problems]
    without = len(found.unchecked) - rewritten
    lines.append(f"{out}: {found.records} records of {found.runs} runs read, {without} of them without a checksum.")
    if asked:
        lines.append(f"Written anew with a checksum: {rewritten}.")
    elif without:
        lines.append("Damage to records without a checksum cannot be seen: --rewrite adds it.")
    if found.problems:
        nothing = " Nothing was rewritten: a checksum would hide them." if asked else ""
        lines.append(f"{len(found.problems)} problem{'s' if len(found.problems) > 1 else ''}.{nothing}")
    return "\n".join(lines)
