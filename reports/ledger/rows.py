"""The ledger as text and JSON: its rows selected and ordered, and what is published on a method."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cispbench.reports.tables.published import References, is_inferred, printed_texts
from cispbench.reports.tables.runs import SCORES, setting_order, setting_pattern
from cispbench.reports.tables.terminal import paragraph, plain_table
from cispbench.results.conventions import Verdict, judge
from cispbench.results.documents import KINDS
from cispbench.results.ledger import READINGS, ledger_rows, published_name
from cispbench.splits.datasets import dataset
from cispbench.splits.errors import UsageError, nearest


@dataclass(frozen=True)
class Filter:
    """Which rows: ``method`` by published or registry name, ``setting`` a name or a pattern with ``*``, ``?``, ``[``.

    ``kind``: reported, excerpted or reproduced; ``source``: a part of the source's text, in any capitals.
    """

    method: str | None = None
    setting: str | None = None
    dataset: str | None = None
    kind: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in vars(self).items() if value is not None)


class JudgedRow(NamedTuple):
    """A published row with its verdict."""

    row: dict[str, Any]
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """Return the row and its verdict as JSON holds them."""
        verdict = self.verdict
        return self.row | {
            "lint": verdict.label, "readings": list(verdict.readings), "likely": verdict.likely,
            "likely_inferred": verdict.inferred, "setting_inferred": is_inferred(self.row),
        }  # fmt: skip


def select(chosen: Filter) -> list[JudgedRow]:
    """Return the rows that pass the filter, in the ledger's order; their verdicts are those of the whole ledger.

    Raises UsageError with the nearest name on a word that no row knows, StoreError on a broken ledger.
    """
    rows = ledger_rows()
    if chosen.kind is not None and chosen.kind not in KINDS:
        raise UsageError(f"unknown kind {chosen.kind!r}.", hint=nearest(chosen.kind, KINDS))
    home = dataset(chosen.dataset).name if chosen.dataset is not None else None
    method = published_name(chosen.method) if chosen.method is not None else None
    pattern = "*" if chosen.setting is None else setting_pattern(chosen.setting)
    settings = {row["setting"] for row in rows}
    if pattern == chosen.setting and set(pattern) & set("*?[") and not fnmatch.filter(settings, pattern):
        raise UsageError(f"no setting of the ledger is like {pattern!r}.", hint=nearest(pattern, settings))
    part = (chosen.source or "").lower()
    if not any(part in row["source"].lower() for row in rows):
        raise UsageError(f"no source of the ledger holds {chosen.source!r}.", hint="`--json` shows them in full.")
    return [
        JudgedRow(row, verdict)
        for row, verdict in zip(rows, judge(rows), strict=True)
        if method in (None, row["method"]) and home in (None, row["dataset"]) and chosen.kind in (None, row["kind"])
        if fnmatch.fnmatchcase(row["setting"], pattern) and part in row["source"].lower()
    ]


def show_text(chosen: Filter) -> str:
    """Return what is published on a method by setting, each row with its source. Raises as ``select`` does."""
    entries = _in_order(select(chosen))
    if not entries:
        return f"The ledger holds no row of {chosen}."
    references, rows = References(), []
    for row, verdict in entries:
        assigned = (row["assignment"] or "").partition(" ")[0]
        words = [assigned, row["kind"], row["backbone"], _reading_text(verdict), references.mark_source(row)]
        rows.append([row["setting"], *printed_texts(row), *words])
    headers = ["setting", *SCORES, "assigned", "kind", "backbone", "reading", "ref"]
    count = f"{len(rows)} published row{'s' if len(rows) > 1 else ''}"
    head = f"{entries[0].row['method']}: {count}, mIoU in percent as printed."
    return "\n\n".join([head, plain_table(headers, rows, SCORES), _legend(entries), references_text(references)])


def show_json(chosen: Filter) -> str:
    """Return the rows of ``show_text`` as a JSON list, each with its readings. Raises as ``select`` does."""
    return json.dumps([entry.as_json() for entry in _in_order(select(chosen))], allow_nan=False)


def references_text(references: References) -> str:
    """Return the numbered texts, one per paragraph."""
    return "\n".join(paragraph(f"{f'[{n}]':<5}{text}.", " " * 5) for text, n in references.numbers.items())


def readings_text(readings: Sequence[str]) -> str:
    """Return all readings that fit a row in few letters."""
    return "any of three" if len(readings) == len(READINGS) else "/".join(readings)


def _reading_text(verdict: Verdict) -> str:
    if verdict.inferred:
        return f"{verdict.likely}?" if verdict.readings else f"{verdict.label}, {verdict.likely}?"
    return verdict.likely or readings_text(verdict.readings) or verdict.label


def _legend(entries: Iterable[JudgedRow]) -> str:
    lines = []
    if any(entry.row["assignment"] for entry in entries):
        lines.append(
            "assigned: how a number got its setting where its source does not print both together; `inferred` is the "
            "likeliest assignment, not a printed one."
        )
    lines.append(
        "reading: where background counts (without: in neither old nor all; both; old-without: in all alone), by the "
        "row's arithmetic. x/y: both fit. x?: inferred, as it fits most rows of the same table. incomplete: old or new "
        "is not printed."
    )
    return "\n".join(paragraph(line, "  ") for line in lines)


def _in_order(entries: Sequence[JudgedRow]) -> list[JudgedRow]:
    """Sort by data set and listed setting, then by how direct a number is and by backbone."""
    order = setting_order(row["setting"] for row, _ in entries)
    return sorted(
        entries,
        key=lambda entry: (order[entry.row["setting"]], list(KINDS).index(entry.row["kind"]), entry.row["backbone"]),
    )
