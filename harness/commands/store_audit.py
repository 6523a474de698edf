"""What ``cispbench check --store`` prints: an audit of the records and, if asked for, of the trained steps."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cispbench.harness.machine.progress import number_of

if TYPE_CHECKING:
    from cispbench.harness.runs.audit import StepsAudit
    from cispbench.results.audit import Finding, RecordsAudit
    from cispbench.results.store import Store


def audit_stores(records: Store, steps_dir: Path | None, *, rewrite: bool, as_json: bool) -> bool:
    """Print what an audit of the stores finds, and return whether all is well.

    ``steps_dir``: also audit this step store. ``rewrite``: give a checksum to the records that carry none, if all
    records are well. Raises StoreError.
    """
    from cispbench.results.audit import audit_records, rewrite_records

    found = audit_records(records)
    rewritten = 0
    if rewrite and not found.problems:
        rewrite_records(found)
        rewritten = len(found.unchecked)
    steps = None if steps_dir is None else _audit_steps(steps_dir)
    if as_json:
        click.echo(json.dumps(_records_json(found, rewritten) | {"steps": _steps_json(steps)}, allow_nan=False))
    else:
        lines = _records_text(found, records.path, rewritten, asked=rewrite)
        if steps is not None and steps_dir is not None:
            lines += _steps_text(steps, steps_dir)
        click.echo("\n".join(lines))
    return not found.problems and (steps is None or steps.sound)


def _audit_steps(folder: Path) -> StepsAudit:
    from cispbench.harness.runs.audit import audit_steps
    from cispbench.harness.runs.step_store import StepStore
    from cispbench.splits.errors import StoreError

    if not folder.is_dir():
        raise StoreError(f"the step store {folder} does not exist.", hint="Give the --steps-dir of the runs.")
    return audit_steps(StepStore(folder))


def _records_json(found: RecordsAudit, rewritten: int) -> dict[str, Any]:
    return {
        "records": found.records, "runs": found.runs, "without_checksum": len(found.unchecked) - rewritten,
        "rewritten": rewritten, "problems": _findings_json(found.problems),
    }  # fmt: skip


def _steps_json(found: StepsAudit | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"counts": dict(found.counts), "findings": _findings_json(found.findings)}


def _findings_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [
        {"file": str(entry.path), "what": entry.what, "action": entry.action, "damaged": entry.damaged}
        for entry in findings
    ]


def _records_text(found: RecordsAudit, out: Path, rewritten: int, *, asked: bool) -> list[str]:
    lines = [f"{entry.what} {entry.action}" for entry in found.problems]
    without = len(found.unchecked) - rewritten
    read = f"{number_of(found.records, 'record')} of {number_of(found.runs, 'run')} read"
    lines.append(f"{out}: {read}, {without} of them without a checksum.")
    if asked:
        lines.append(f"Written anew with a checksum: {rewritten}.")
    elif without:
        lines.append("Damage to records without a checksum cannot be seen: --rewrite adds it.")
    if found.problems:
        nothing = " Nothing was rewritten: a checksum would hide them." if asked else ""
        lines.append(f"{number_of(len(found.problems), 'problem')}.{nothing}")
    return lines


def _steps_text(found: StepsAudit, folder: Path) -> list[str]:
    lines = [f"{entry.what} {entry.action}" for entry in found.findings]
    counts = found.counts
    without = counts["manifests without checksum"]
    lines.append(
        f"{folder}: {number_of(counts['steps'], 'sound step')} ({counts['bytes'] / 2**20:.0f} MiB), "
        f"{number_of(counts['evaluations'], 'evaluation')} and {number_of(counts['checkpoints'], 'checkpoint')} read."
    )
    if without:
        lines.append(f"{without} manifests carry no checksum, as earlier versions wrote them.")
    if counts["at work"]:
        lines.append(f"{counts['at work']} steps are in training now and were left out.")
    damaged = sum(entry.damaged for entry in found.findings)
    if damaged:
        lines.append(f"{damaged} damaged.")
    return lines
