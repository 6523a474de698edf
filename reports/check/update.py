"""Write baselines anew from the measured runs of a store, with the reason."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cispbench.reports.check.comparison import PROTOCOL
from cispbench.reports.check.regression import data_fingerprint, measured_cells, recipe_digest
from cispbench.reports.tables.cells import Cell
from cispbench.reports.tables.runs import SCORES, Selection
from cispbench.results.baselines_files import (
    SCHEMA,
    BaselineCell,
    Baselines,
    Change,
    Figure,
    baselines_path,
    merged,
    read_baselines,
    write_baselines,
)
from cispbench.results.protocols import load_protocol
from cispbench.results.store import Store
from cispbench.splits.errors import StoreError, UsageError

_DIGITS = 3


@dataclass(frozen=True)
class Update:
    """Why the figures change, and the new ``machine`` and ``command`` of their file; None leaves those as they are."""

    reason: str
    machine: float | None = None
    command: str | None = None


def update_baselines(store: Store, folder: Path, selection: Selection, update: Update) -> dict[Path, bool]:
    """Write the selected measured cells into the baselines of ``folder``, and return each file and if it was written.

    Cells that the store has no runs of are kept, unless the protocol has changed its version; every change is added to
    the file's history, and a file that would say the same is left as it is. Raises UsageError for a missing reason or
    if all runs are on full data, StoreError for runs that differ in a method's options, among which a baseline cannot
    choose.
    """
    if not update.reason.strip():
        raise UsageError("--update needs a reason.", hint="Say why the numbers may change: --reason TEXT.")
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in measured_cells(store, selection)[0]:
        if not cell.group.comparable:
            groups[cell.key.kind, cell.key.profile].append(cell)
    if not groups:
        raise UsageError(
            f"{store.path} holds no quick or mini run of the selection.",
            hint="Runs on the full data are held against published numbers, not against baselines.",
        )
    known = {(found.kind, found.profile): found for found in read_baselines(folder)} if folder.is_dir() else {}
    made = {pair: _updated(known.get(pair), pair, members, update) for pair, members in sorted(groups.items())}
    changed = {pair: baselines != known.get(pair) for pair, baselines in made.items()}
    return {
        write_baselines(folder, baselines) if changed[pair] else baselines_path(folder, baselines): changed[pair]
        for pair, baselines in made.items()
    }


def _updated(
    before: Baselines | None, kind_and_profile: tuple[str, str], members: Sequence[Cell], update: Update
) -> Baselines:
    new = [_baseline(cell) for cell in members]
    for cell, times in Counter(cell.identity for cell in new).items():
        if times > 1:
            raise StoreError(
                f"the store holds runs of {cell[2]} on {cell[1]} that differ in the method's options or version: a "
                "baseline cannot choose.",
                hint="Give a store that holds the right ones alone, by --results.",
            )
    known = members[0].runs[0].facts.environment
    machine = known.get("device_name") or known.get("cpu")
    environment = f"{machine}, torch {known.get('torch')}, {known.get('threads')} threads"
    rules = load_protocol(PROTOCOL)
    protocol = f"{rules.name} v{rules.version}"
    if before is None:
        before = Baselines(SCHEMA, *kind_and_profile, protocol, machine=0.0, command="", cells=(), history=())
    new_figures = replace(
        before,
        schema=SCHEMA,
        protocol=protocol,
        machine=before.machine if update.machine is None else update.machine,
        command=update.command or before.command,
        # Otherwise figures under an older version of the protocol would be taken for figures under this one.
        cells=merged(before.cells if before.protocol == protocol else (), new),
    )
    if new_figures == before:
        return before
    today = datetime.now(UTC).date().isoformat()
    change = Change(today, update.reason.strip(), len(new), environment)
    return replace(new_figures, history=(*before.history, change))


def _baseline(cell: Cell) -> BaselineCell:
    key, seeds, figures = cell.key, tuple(run.facts.seed for run in cell.runs), []
    for name in SCORES:
        mean, std, _ = cell.numbers[name]
        spread = None if math.isnan(std) else round(std, _DIGITS)
        figures.append(None if math.isnan(mean) else Figure(round(mean, _DIGITS), spread))
    recipe, data = recipe_digest(cell), data_fingerprint(cell)
    return BaselineCell(key.dataset, cell.setting, key.method, key.model, recipe, data, seeds, *figures)
