"""What is published beside a cell of measured runs, and how far the measured numbers are from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

from cispbench.reports.tables.aggregate import SCORES, Cell
from cispbench.results.conventions import Verdict, judge
from cispbench.results.ledger import KINDS, ledger_rows, reported_rows


@dataclass(frozen=True)
class Published:
    """A published row of a cell's method and setting.

    ``row``: as the ledger holds it (``kind`` is reported, excerpted or reproduced); ``verdict``: which means its
    numbers can be (``likely``, with ``inferred``, where its own arithmetic leaves a choice); ``setting_inferred``: its
    source does not print setting and number together; ``same_backbone``: as far as the names tell;
    ``differences``: measured mean minus printed number by old, new and all, None where either is missing.
    """

    row: Mapping[str, Any]
    verdict: Verdict
    setting_inferred: bool
    same_backbone: bool
    differences: Mapping[str, float | None]


def published(cell: Cell) -> list[Published]:
    """Return the published rows of a cell's method and setting: same backbone first, then by how direct they are.

    None for a cell that may not stand beside papers (mini or synthetic data, another profile).
    Raises StoreError on a broken ledger.
    """
    if not cell.comparable:
        return []
    found = [_beside(cell, row) for row in reported_rows(cell.setting, cell.key.method)]
    return sorted(found, key=lambda entry: (not entry.same_backbone, KINDS.index(entry.row["kind"])))


def closest(cell: Cell) -> list[Published]:
    """Return the published rows of a cell's backbone, of the most direct kind that exists."""
    rows = [entry for entry in published(cell) if entry.same_backbone]
    return [entry for entry in rows if entry.row["kind"] == rows[0].row["kind"]]


def printed_range(rows: Sequence[Published], name: str) -> tuple[float, float] | None:
    """Return the lowest and the highest printed ``old``, ``new`` or ``all``; None where nothing is printed."""
    values = [float(entry.row[name]) for entry in rows if entry.row[name] is not None]
    return (min(values), max(values)) if values else None


def same_backbone(model: str, backbone: str) -> bool:
    """Say whether every word of a published backbone is a run of parts of the model's name.

    >>> same_backbone("segmenter-vit-b16", "ViT-B/16 (Segmenter)"), same_backbone("segmenter-vit-b16", "ViT-B")
    (True, False)
    """
    parts = model.lower().split("-")
    runs = {"".join(parts[start:end]) for start, end in combinations(range(len(parts) + 1), 2)}
    words = backbone.lower().translate(str.maketrans("", "", "-/()")).split()
    return set(words) <= runs


def _beside(cell: Cell, row: dict[str, Any]) -> Published:
    differences = {name: _difference(cell.numbers[name].mean, row[name]) for name in SCORES}
    inferred = (row["assignment"] or "").startswith("inferred")
    verdict = verdicts()[tuple(row.values())]
    return Published(row, verdict, inferred, same_backbone(cell.key.model, row["backbone"]), differences)


def _difference(measured: float, printed: float | None) -> float | None:
    return None if printed is None or math.isnan(measured) else measured - printed


@cache
def verdicts() -> dict[tuple[Any, ...], Verdict]:
    """Return the verdict of every row of the ledger; rows that say the same have the same."""
    rows = ledger_rows()
    return {tuple(row.values()): verdict for row, verdict in zip(rows, judge(rows), strict=True)}
