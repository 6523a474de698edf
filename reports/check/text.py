"""What a regression check prints: a table of cells, or JSON."""

from __future__ import annotations

import json
import math
from typing import Any

from cispbench.reports.check.regression import STATUSES, Check, Compared, Row
from cispbench.reports.tables.markdown import markdown_table, number_text

_MARKS = {"worse": " WORSE", "better": " better"}


def check_text(check: Check) -> str:
    """Return a table of all rows, the worst first, and how many there are of each status."""
    rows = sorted(check.rows, key=lambda row: STATUSES.index(row.status))
    headers = ["status", "setting", "method", "model", "data", "seeds", "old", "new", "all", "against", "note"]
    lines = [
        "Measured mIoU in percent, in brackets its reference and by how many points they may differ.",
        "",
        markdown_table(headers, [_cells(row) for row in rows]),
        "",
        ", ".join(f"{check.count(status)} {status}" for status in STATUSES if check.count(status)) + ".",
    ]
    if check.left_out:
        lines.append(f"Not measured here, and not compared: {check.left_out} cells.")
    if check.count("better"):
        lines.append("Better than the tolerance may be a change worth keeping: --update --reason TEXT.")
    return "\n".join(lines)


def check_json(check: Check) -> str:
    """Return the rows with their scores, references and tolerances (null where there is none), and the counts."""
    counts = {status: check.count(status) for status in STATUSES}
    rows = [_row_json(row) for row in check.rows]
    return json.dumps({"counts": counts, "left_out": check.left_out, "cells": rows}, allow_nan=False)


def _cells(row: Row) -> list[str]:
    method = f"{row.method} (variant {row.variant})" if row.variant else row.method
    numbers = [_number(entry) for entry in row.compared]
    return [row.status, row.setting, method, row.model, f"{row.kind}, {row.profile}", str(len(row.seeds)), *numbers,
            row.against, row.note]  # fmt: skip


def _number(entry: Compared) -> str:
    if math.isnan(entry.reference):
        return number_text(entry.measured, 2)
    allowed = "" if math.isnan(entry.tolerance) else f" ± {entry.tolerance:.2f}"
    return f"{number_text(entry.measured, 2)} [{entry.reference:.2f}{allowed}]{_MARKS.get(entry.status, '')}"


def _row_json(row: Row) -> dict[str, Any]:
    scores = {
        entry.name: {
            "measured": _finite(entry.measured), "reference": _finite(entry.reference),
            "tolerance": _finite(entry.tolerance), "status": entry.status,
        }
        for entry in row.compared
    }  # fmt: skip
    return {
        "status": row.status, "data": row.kind, "profile": row.profile, "dataset": row.dataset,
        "setting": row.setting, "method": row.method, "model": row.model, "variant": row.variant,
        "seeds": list(row.seeds), "against": row.against, "note": row.note, "scores": scores,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
