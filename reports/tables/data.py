"""The cells and runs of a store as data: JSON and CSV, numbers unrounded, null or empty where unknown."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cispbench.reports.tables.aggregate import NUMBERS, SCORES, Cell, Run
from cispbench.reports.tables.published import Published, closest, printed_range, published
from cispbench.reports.tables.runs import run_json, scores_json
from cispbench.results.continual import METRICS

# What a spreadsheet takes for the start of a formula, full-width forms included.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def cell_data(cell: Cell) -> dict[str, Any]:
    """Return a cell as JSON holds it: its key, means (``old``) and deviations (``old_std``), runs and published rows.

    ``seed`` and ``run_key`` are null where there are several runs: ``runs`` has them all.
    """
    only = cell.runs[0].facts if len(cell.runs) == 1 else None
    key = cell.key._asdict()
    return {
        **{"data" if name == "kind" else name: value for name, value in key.items()},
        "setting": cell.setting, "joint": cell.joint, "protocol": cell.runs[0].protocol,
        "seeds": len(cell.runs), "seed": only and only.seed, "run_key": only and only.run_key,
        "superseded": cell.superseded, "comparable": cell.comparable,
        **{name: _number(cell.numbers[name].mean) for name in NUMBERS},
        **{f"{name}_std": _number(cell.numbers[name].std) for name in NUMBERS},
        "runs": [_brief(run) for run in cell.runs],
        "published": [_published_data(entry) for entry in published(cell)],
    }  # fmt: skip


def run_data(run: Run) -> dict[str, Any]:
    """Return a run as JSON holds it: what identifies it, and its numbers."""
    return {
        **run_json(run.facts), "protocol": run.protocol, **scores_json(run.scores),
        **{name: _number(run.number(name)) for name in METRICS},
        "origin": run.facts.origin, "imported": run.imported,
    }  # fmt: skip


def cells_json(cells: Sequence[Cell]) -> str:
    """Return cells as a JSON list."""
    return json.dumps([cell_data(cell) for cell in cells], allow_nan=False)


def runs_json(runs: Sequence[Run]) -> str:
    """Return runs as a JSON list."""
    return json.dumps([run_data(run) for run in runs], allow_nan=False)


def cells_csv(cells: Sequence[Cell]) -> str:
    """Return cells as CSV, one a row, beside the lowest and highest published number of the same backbone."""
    rows = []
    for cell in cells:
        row = {name: value for name, value in cell_data(cell).items() if name not in ("runs", "published")}
        facts = [run.facts for run in cell.runs]
        row["seed"], row["run_key"] = " ".join(str(run.seed) for run in facts), " ".join(run.run_key for run in facts)
        rows.append(row | _closest_columns(closest(cell)))
    return write_csv(rows)


def runs_csv(runs: Sequence[Run]) -> str:
    """Return runs as CSV, one a row."""
    return write_csv([run_data(run) for run in runs])


def write_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the same keys as CSV (RFC 4180, lines end in LF); nothing for no rows.

    A text that a spreadsheet would take for a formula gets an apostrophe in front; numbers are left as they are.
    """
    if not rows:
        return ""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_field(value) for value in row.values()] for row in rows)
    return buffer.getvalue()


def _field(value: Any) -> str:
    if isinstance(value, str):
        text = value.replace("\0", "\\x00")
        return f"'{text}" if text.startswith(_FORMULA) else text
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _closest_columns(rows: Sequence[Published]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in SCORES:
        low, high = printed_range(rows, name) or (None, None)
        known = [value for entry in rows if (value := entry.differences[name]) is not None]
        found |= {
            f"published_{name}_lowest": low, f"published_{name}_highest": high,
            f"difference_{name}_lowest": min(known, default=None),
            f"difference_{name}_highest": max(known, default=None),
        }  # fmt: skip
    return found | {
        "published_kind": rows[0].row["kind"] if rows else None,
        "published_sources": "; ".join(dict.fromkeys(entry.row["source"] for entry in rows)) or None,
    }


def _published_data(entry: Published) -> dict[str, Any]:
    row, verdict = entry.row, entry.verdict
    return {
        **{name: row[name] for name in ("method", "backbone", *SCORES, "kind", "source", "note", "assignment")},
        "same_backbone": entry.same_backbone, "setting_inferred": entry.setting_inferred,
        "lint": verdict.label, "readings": list(verdict.readings), "likely": verdict.likely,
        "likely_inferred": verdict.inferred, "differences": dict(entry.differences),
    }  # fmt: skip


def _brief(run: Run) -> dict[str, Any]:
    facts = run.facts
    return {
        "seed": facts.seed, "run_key": facts.run_key, "created": facts.created, "commit": facts.git.commit,
        **{name: _number(run.number(name)) for name in NUMBERS},
    }  # fmt: skip


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
