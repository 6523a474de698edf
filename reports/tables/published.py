"""What is published on the method and setting of a cell, and how far the measured numbers are from it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

from cispbench.reports.tables.cells import Cell
from cispbench.reports.tables.extras import extra_columns, published_extras
from cispbench.reports.tables.layout import Column, Section, Table, plain
from cispbench.reports.tables.numbers import signed
from cispbench.reports.tables.runs import SCORES
from cispbench.results.conventions import Verdict, judge
from cispbench.results.documents import KINDS
from cispbench.results.ledger import ledger_rows, reported_rows
from cispbench.results.published_methods import UNKNOWN, method_facts


@dataclass(frozen=True)
class Published:
    """A published row of a cell's method and setting, as the ledger holds it, with its verdict.

    ``same_backbone``: by the names; ``differences``: measured mean minus printed number by old, new and all, None where
    either is missing.
    """

    row: Mapping[str, Any]
    verdict: Verdict
    same_backbone: bool
    differences: Mapping[str, float | None]


class References:
    """Numbers for the texts that rows refer to, in the order in which they come up."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, *texts: str | None) -> str:
        """Return ``[n]`` for the texts joined; None and "" are left out."""
        whole = ". ".join(" ".join(text.split()).rstrip(".") for text in texts if text)
        return f"[{self.numbers.setdefault(whole, len(self.numbers) + 1)}]"

    def mark_source(self, row: Mapping[str, Any]) -> str:
        """Return ``[n]`` for where a published row stands, who ran it, its note, and how its setting was assigned."""
        ran = f"Run by {row['run_by']}" if row["run_by"] else "Who ran it is not known"
        also = row["also"] and f"Also: {'; '.join(row['also'])}"
        assigned = row["assignment"] and f"Assignment of the setting: {row['assignment']}"
        return self.mark(
            row["source"], ran + (" (inferred)" if row["run_by_inferred"] else ""), row["note"], also, assigned
        )


def published(cell: Cell) -> list[Published]:
    """Return the published rows of a cell's method and setting: same backbone first, then by how direct they are.

    Empty for mini and synthetic data and other profiles than the papers'. Raises StoreError on a broken ledger.
    """
    if not cell.group.comparable:
        return []
    found = []
    for row in reported_rows(cell.setting, cell.key.method):
        differences = {}
        for name in SCORES:
            measured, printed = cell.numbers[name].mean, row[name]
            differences[name] = None if printed is None or math.isnan(measured) else measured - printed
        same = same_backbone(cell.key.model, row["backbone"])
        found.append(Published(row, verdicts()[tuple(row.values())], same, differences))
    return sorted(found, key=lambda entry: (not entry.same_backbone, list(KINDS).index(entry.row["kind"])))


def closest(cell: Cell) -> list[Published]:
    """Return the published rows of a cell's backbone, of the most direct kind that exists."""
    rows = [entry for entry in published(cell) if entry.same_backbone]
    return [entry for entry in rows if entry.row["kind"] == rows[0].row["kind"]]


def printed_range(rows: Sequence[Published], name: str) -> tuple[float, float] | None:
    """Return the lowest and the highest printed ``old``, ``new`` or ``all``; None where nothing is printed."""
    values = [float(entry.row[name]) for entry in rows if entry.row[name] is not None]
    return (min(values), max(values)) if values else None


def printed_texts(row: Mapping[str, Any]) -> list[str]:
    """Return a row's old, new and all as printed, a dash where nothing is printed."""
    return ["-" if row[name] is None else str(row[name]) for name in SCORES]


def published_section(cells: Sequence[Cell], decimals: int) -> list[Section]:
    """Return a section of all published rows of a group's cells, none if there are no rows."""
    references, rows = References(), []
    found = [(cell, entry) for cell in cells for entry in published(cell)]
    extra, extras = extra_columns(
        [published_extras(method_facts().get(entry.row["method"], UNKNOWN), cell.key.dataset) for cell, entry in found]
    )
    for (cell, entry), used in zip(found, extras, strict=True):
        row, verdict = entry.row, entry.verdict
        differences = [entry.differences[name] for name in SCORES]
        likely = f"{verdict.likely}{'?' if verdict.inferred else ''}" if verdict.likely else verdict.label
        texts = [
            cell.setting, cell.key.method, cell.key.model,
            *printed_texts(row),
            *("-" if value is None else signed(value, decimals) for value in differences),
            kind_text(row) + (" (setting inferred)" if is_inferred(row) else ""),
            row["backbone"] + ("" if entry.same_backbone else " (another)"), *used,
            likely, references.mark_source(row),
        ]  # fmt: skip
        rows.append(plain(texts))
    columns = [Column(name) for name in ("setting", "method", "model")]
    columns += [Column(name, over, right=True) for over in ("published", "measured - published") for name in SCORES]
    columns += [Column(name) for name in ("kind", "backbone", *extra, "reading", "source")]
    section = Section(
        f"{cells[0].group.dataset}: published rows of the methods measured",
        "As printed, in percent; reading: where background counts (?: inferred from its table).",
        Table(columns, rows),
        [f"[{number}] {source}." for source, number in references.numbers.items()],
    )
    return [section] if rows else []


def same_backbone(model: str, backbone: str) -> bool:
    """Say whether every word of a published backbone is found in the model's name, as one part or several in a row.

    >>> same_backbone("segmenter-vit-b16", "ViT-B/16 (Segmenter)"), same_backbone("segmenter-vit-b16", "ViT-B")
    (True, False)
    """
    parts = model.lower().split("-")
    joined = {"".join(parts[start:end]) for start, end in combinations(range(len(parts) + 1), 2)}
    words = backbone.lower().translate(str.maketrans("", "", "-/()")).split()
    return set(words) <= joined


def kind_text(row: Mapping[str, Any]) -> str:
    """Return a row's kind, with a question mark where it is inferred who ran it."""
    return f"{row['kind']}{'?' if row['run_by_inferred'] else ''}"


def is_inferred(row: Mapping[str, Any]) -> bool:
    """Say whether a row's setting is inferred: its source does not print the number together with its setting."""
    return (row["assignment"] or "").startswith("inferred")


def is_repeated_otherwise(row: Mapping[str, Any], name: str) -> bool:
    """Say whether a document that repeats a row prints another ``old``, ``new`` or ``all``.

    The ledger says so in the texts of its column ``also``: "... (prints old 77.3, all 75.7)".
    """
    printed = " ".join(words for text in row["also"] for words in re.findall(r"\(prints ([^)]*)\)", text))
    return name in printed.split()


@cache
def verdicts() -> dict[tuple[Any, ...], Verdict]:
    """Return the verdict of every row of the ledger; rows that say the same have the same."""
    rows = ledger_rows()
    # By the row's values: a row is a dict, which cannot be a key.
    return {tuple(row.values()): verdict for row, verdict in zip(rows, judge(rows), strict=True)}
