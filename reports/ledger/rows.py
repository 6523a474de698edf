"""The ledger as text and JSON: which rows, in what order, and what is published on a method."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cispbench.reports.tables.runs import setting_pattern, sorted_settings
from cispbench.reports.tables.terminal import References, paragraph, plain_table
from cispbench.results.conventions import Verdict, judge
from cispbench.results.ledger import KINDS, READINGS, ledger_rows, published_name
from cispbench.splits.datasets import dataset
from cispbench.splits.errors import UsageError, nearest

NUMBERS = ("old", "new", "all")


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


class Entry(NamedTuple):
    """A published row with its verdict."""

    row: dict[str, Any]
    verdict: Verdict

    def plain(self) -> dict[str, Any]:
        """Return the row and its verdict as JSON holds them."""
        verdict, assignment = self.verdict, self.row["assignment"]
        return self.row | {
            "lint": verdict.label, "readings": list(verdict.readings), "likely": verdict.likely,
            "likely_inferred": verdict.inferred, "setting_inferred": _is_inferred(assignment),
        }  # fmt: skip


def select(chosen: Filter) -> list[Entry]:
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
        Entry(row, verdict)
        for row, verdict in zip(rows, judge(rows), strict=True)
        if method in (None, row["method"]) and home in (None, row["dataset"]) and chosen.kind in (None, row["kind"])
        if fnmatch.fnmatchcase(row["setting"], pattern) and part in row["source"].lower()
    ]


def show_text(chosen: Filter) -> str:
    """Return what is published on a method: old, new and all by setting, with kind, backbone, reading and source.

    Raises as ``select`` does.
    """
    entries = _in_order(select(chosen))
    if not entries:
        return nothing(chosen)
    references, rows = References(), []
    for entry in entries:
        row, assigned = entry.row, entry.row["assignment"]
        source = (row["source"], row["note"], assigned and f"Assignment of the setting: {assigned}")
        rows.append(
            [row["setting"], *number_texts(row), (assigned or "").partition(" ")[0], row["kind"], row["backbone"],
             _reading_text(entry.verdict), references.mark(*source)]
        )  # fmt: skip
    headers = ["setting", *NUMBERS, "assigned", "kind", "backbone", "reading", "ref"]
    head = f"{entries[0].row['method']}: {len(rows)} published rows, mIoU in percent as printed."
    return "\n\n".join([head, plain_table(headers, rows, NUMBERS), _legend(entries), references.text()])


def show_json(chosen: Filter) -> str:
    """Return the rows of ``show_text`` as a JSON list, each with its readings. Raises as ``select`` does."""
    return json.dumps([entry.plain() for entry in _in_order(select(chosen))], allow_nan=False)


def nothing(chosen: Filter) -> str:
    """Return the line for a filter that leaves no row."""
    return f"The ledger holds no row of {chosen}."


def number_texts(row: dict[str, Any]) -> list[str]:
    """Return a row's old, new and all as printed, a dash where nothing is."""
    return ["-" if row[name] is None else str(row[name]) for name in NUMBERS]


def readings_text(readings: Sequence[str]) -> str:
    """Return all readings that fit a row in few letters."""
    return "any of three" if len(readings) == len(READINGS) else "/".join(readings)


def _reading_text(verdict: Verdict) -> str:
    if verdict.inferred:
        return f"{verdict.likely}?" if verdict.readings else f"{verdict.label}, {verdict.likely}?"
    return verdict.likely or readings_text(verdict.readings) or verdict.label


def _is_inferred(assignment: str | None) -> bool:
    return assignment is not None and assignment.startswith("inferred")


def _legend(entries: Iterable[Entry]) -> str:
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


def _in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Sort by data set and listed setting, then by how direct a number is and by backbone."""
    chosen = list(entries)
    places = {name: place for place, name in enumerate(sorted_settings({entry.row["setting"] for entry in chosen}))}
    return sorted(
        chosen,
        key=lambda entry: (places[entry.row["setting"]], KINDS.index(entry.row["kind"]), entry.row["backbone"]),
    )
