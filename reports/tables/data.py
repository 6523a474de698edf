"""The cells and runs of a store as data: JSON and CSV, numbers unrounded, null or empty where unknown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from cispbench.reports.tables.cells import Cell
from cispbench.reports.tables.extras import measured_extras
from cispbench.reports.tables.numbers import json_number
from cispbench.reports.tables.published import closest, is_inferred, printed_range, published
from cispbench.reports.tables.runs import NUMBERS, SCORES, Run, run_json, scores_json
from cispbench.results.continual import METRICS

# What a spreadsheet takes for the start of a formula, full-width forms included.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def cell_data(cell: Cell) -> dict[str, Any]:
    """Return a cell as JSON holds it: its key, means (``old``) and deviations (``old_std``), runs and published rows.

    ``seed`` and ``run_key`` are null where there are several runs: ``runs`` has them all. ``exemplar_images`` and
    ``exemplar_bytes`` are the most that one of the runs keeps.
    """
    runs = [
        {
            "seed": run.facts.seed, "run_key": run.facts.run_key, "created": run.facts.created,
            "commit": run.facts.git.commit, **_extras(run), **{name: json_number(run.number(name)) for name in NUMBERS},
        }
        for run in cell.runs
    ]  # fmt: skip
    rows = []
    for entry in published(cell):
        row, verdict = entry.row, entry.verdict
        rows.append({
            **{name: row[name] for name in ("method", "backbone", *SCORES, "kind", "source", "note", "assignment")},
            **{name: row[name] for name in ("run_by", "run_by_inferred", "links")},
            "same_backbone": entry.same_backbone, "setting_inferred": is_inferred(row),
            "lint": verdict.label, "readings": list(verdict.readings), "likely": verdict.likely,
            "likely_inferred": verdict.inferred, "differences": dict(entry.differences),
        })  # fmt: skip
    return {**_cell_numbers(cell), "runs": runs, "published": rows}


def run_data(run: Run) -> dict[str, Any]:
    """Return a run as JSON and CSV hold it: what identifies it, and its numbers."""
    return {
        **run_json(run.facts), "protocol": run.protocol, **scores_json(run.scores),
        **{name: json_number(run.number(name)) for name in METRICS},
        "origin": run.facts.origin, "imported": run.imported, **_extras(run),
    }  # fmt: skip


def cell_csv_row(cell: Cell) -> dict[str, Any]:
    """Return a cell as a row of CSV, with the lowest and highest published number of the same backbone."""
    facts = [run.facts for run in cell.runs]
    seeds, keys = " ".join(str(run.seed) for run in facts), " ".join(run.run_key for run in facts)
    rows = closest(cell)
    row = _cell_numbers(cell) | {"seed": seeds, "run_key": keys}
    for name in SCORES:
        low, high = printed_range(rows, name) or (None, None)
        differences = [value for entry in rows if (value := entry.differences[name]) is not None]
        row |= {
            f"published_{name}_lowest": low, f"published_{name}_highest": high,
            f"difference_{name}_lowest": min(differences, default=None),
            f"difference_{name}_highest": max(differences, default=None),
        }  # fmt: skip
    sources = "; ".join(dict.fromkeys(entry.row["source"] for entry in rows))
    return row | {"published_kind": rows[0].row["kind"] if rows else None, "published_sources": sources or None}


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


def _cell_numbers(cell: Cell) -> dict[str, Any]:
    only = cell.runs[0].facts if len(cell.runs) == 1 else None
    key = cell.key._asdict()
    return {
        **{"data" if name == "kind" else name: value for name, value in key.items()},
        "setting": cell.setting, "joint": cell.joint, "protocol": cell.runs[0].protocol,
        "seeds": len(cell.runs), "seed": only and only.seed, "run_key": only and only.run_key,
        "superseded": cell.superseded, "comparable": cell.group.comparable,
        **measured_extras(cell.runs)._asdict(), **_most_exemplars(cell.runs),
        **{name: json_number(cell.numbers[name].mean) for name in NUMBERS},
        **{f"{name}_std": json_number(cell.numbers[name].std) for name in NUMBERS},
    }  # fmt: skip


def _most_exemplars(runs: Sequence[Run]) -> dict[str, int | None]:
    """Return the most images and bytes that one of the runs keeps; None where none keeps any."""
    kept = [run.facts.exemplars for run in runs if run.facts.exemplars is not None]
    return {
        "exemplar_images": max((one.images for one in kept), default=None),
        "exemplar_bytes": max((one.bytes for one in kept), default=None),
    }


def _extras(run: Run) -> dict[str, Any]:
    used = run.facts.exemplars
    return {
        "exemplar_images": used and used.images, "exemplar_bytes": used and used.bytes,
        "supervision": " ".join(run.facts.supervision) or None,
    }  # fmt: skip


def _field(value: Any) -> str:
    if isinstance(value, str):
        text = value.replace("\0", "\\x00")
        return f"'{text}" if text.startswith(_FORMULA) else text
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else repr(value)
