"""What a regression check prints: a table of cells, or JSON."""

from __future__ import annotations

import json
import math
from typing import Any

from cispbench.reports.check.comparison import STATUSES, Compared
from cispbench.reports.check.regression import CheckedCell, CheckResult
from cispbench.reports.tables.numbers import json_number, number_text
from cispbench.reports.tables.published import References
from cispbench.reports.tables.terminal import table_text, wrap_long

_MARKS = {"worse": " WORSE", "better": " better"}


def check_text(check: CheckResult, terminal: bool = False) -> str:
    """Return a table of all cells, the worst first, and how many there are of each status.

    ``terminal``: for a terminal, not as Markdown; there what the cells are compared with stands below the table, as a
    column so narrow would make every row many lines high.
    """
    rows, references = [], References()
    for cell in sorted(check.cells, key=lambda cell: STATUSES.index(cell.status)):
        method = f"{cell.method} (variant {cell.variant})" if cell.variant else cell.method
        words = [cell.status, cell.setting, method, cell.model, f"{cell.kind} {cell.profile}", str(len(cell.seeds))]
        against = "; ".join(filter(None, (cell.against, cell.note)))
        if terminal and against != "-":
            against = references.mark(against)
        rows.append([*words, *map(_number, cell.compared), against])
    headers = ["status", "setting", "method", "model", "data", "seeds", "old", "new", "all", "against"]
    counts = ", ".join(f"{check.count(status)} {status}" for status in STATUSES if check.count(status))
    title = "Measured mIoU in percent, in brackets its reference and by how many points they may differ."
    lines = [title, "", table_text(headers, rows, terminal=terminal), ""]
    listed = [f"[{number}] {against}" for against, number in references.numbers.items()]
    lines += [*listed, "", f"{counts}."] if listed else [f"{counts}."]
    if check.left_out:
        lines.append(f"Not measured here, and not compared: {check.left_out} cell{'s' if check.left_out > 1 else ''}.")
    if check.count("better"):
        lines.append("Better than the tolerance may be a change worth keeping: --update --reason TEXT.")
    text = "\n".join(lines)
    return wrap_long(text) if terminal else text


def check_json(check: CheckResult) -> str:
    """Return the cells with their scores, references and tolerances (null where there is none), and the counts."""
    counts = {status: check.count(status) for status in STATUSES}
    cells = [_cell_json(cell) for cell in check.cells]
    return json.dumps({"counts": counts, "left_out": check.left_out, "cells": cells}, allow_nan=False)


def _number(score: Compared) -> str:
    if math.isnan(score.reference):
        return number_text(score.measured, 2)
    allowed = "" if math.isnan(score.tolerance) else f" ± {score.tolerance:.2f}"
    return f"{number_text(score.measured, 2)} [{score.reference:.2f}{allowed}]{_MARKS.get(score.status, '')}"


def _cell_json(cell: CheckedCell) -> dict[str, Any]:
    scores = {
        score.name: {
            "measured": json_number(score.measured), "reference": json_number(score.reference),
            "tolerance": json_number(score.tolerance), "status": score.status,
        }
        for score in cell.compared
    }  # fmt: skip
    return {
        "status": cell.status, "data": cell.kind, "profile": cell.profile, "dataset": cell.dataset,
        "setting": cell.setting, "method": cell.method, "model": cell.model, "variant": cell.variant,
        "seeds": list(cell.seeds), "against": cell.against, "note": cell.note, "scores": scores,
    }  # fmt: skip
