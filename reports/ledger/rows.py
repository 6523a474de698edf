"""The ledger as text and JSON: its rows selected and ordered, what is published on a method or a setting."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cispbench.reports.tables.extras import NO, Extras, published_extras
from cispbench.reports.tables.published import References, is_inferred, kind_text, printed_texts
from cispbench.reports.tables.runs import SCORES, setting_order, setting_pattern
from cispbench.reports.tables.terminal import paragraph, plain_table
from cispbench.results.conventions import Verdict, judge
from cispbench.results.documents import KINDS
from cispbench.results.ledger import READINGS, ledger_rows, published_name
from cispbench.results.published_methods import UNKNOWN, method_facts
from cispbench.splits.datasets import dataset
from cispbench.splits.errors import UsageError, nearest


@dataclass(frozen=True)
class Filter:
    """Which rows: ``method`` by published or registry name, ``setting`` a name or a pattern with ``*``, ``?``, ``[``.

    ``kind``: own, quoted, re-run or "not known"; ``source``: a part of the source's text, in any capitals.
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

    @property
    def extras(self) -> Extras:
        """What is known of the method's memory and supervision on the row's data set."""
        return published_extras(method_facts().get(self.row["method"], UNKNOWN), self.row["dataset"])

    def as_json(self) -> dict[str, Any]:
        """Return the row and its verdict as JSON holds them."""
        verdict = self.verdict
        return self.row | {
            "lint": verdict.label, "readings": list(verdict.readings), "likely": verdict.likely,
            "likely_inferred": verdict.inferred, "setting_inferred": is_inferred(self.row),
            **self.extras._asdict(),
        }  # fmt: skip


def select(chosen: Filter) -> list[JudgedRow]:
    """Return the rows that pass the filter, in the ledger's order; their verdicts are those of the whole ledger.

    Raises UsageError with the nearest name on a word that no row knows, StoreError on a broken ledger.
    """
    rows = ledger_rows()
    if chosen.kind is not None and chosen.kind not in KINDS:
        raise UsageError(f"unknown kind {chosen.kind!r}.", hint=f"The kinds of published numbers: {', '.join(KINDS)}.")
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
    """Return the rows of a method by setting, or a table for each setting, with their sources. Raises as ``select``."""
    entries = _in_order(select(chosen))
    if not entries:
        return f"The ledger holds no row of {chosen}."
    references, parts = References(), []
    what, within = ("method", "setting") if chosen.method is not None else ("setting", "method")
    for name, group in _by(entries, what).items():
        count = f"{len(group)} published row{'s' if len(group) > 1 else ''}"
        parts += [f"{name}: {count}, mIoU in percent as printed.", _table(group, within, references)]
    return "\n\n".join([*parts, _legend(entries), references_text(references)])


def _by(entries: Iterable[JudgedRow], column: str) -> dict[str, list[JudgedRow]]:
    groups: dict[str, list[JudgedRow]] = {}
    for entry in entries:
        groups.setdefault(entry.row[column], []).append(entry)
    return groups


def _table(entries: Iterable[JudgedRow], first: str, references: References) -> str:
    rows = []
    for row, verdict in entries:
        numbers = [f"{text}{'?' if is_inferred(row) and text != '-' else ''}" for text in printed_texts(row)]
        words = [kind_text(row), row["backbone"], _reading_text(verdict), references.mark_source(row)]
        rows.append([row[first], *numbers, *words])
    return plain_table([first, *SCORES, "kind", "network", "reading", "ref"], rows, SCORES)


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
    if verdict.inferred and verdict.readings:
        return f"{verdict.likely}?"
    if verdict.label == "inconsistent":
        return verdict.label
    return verdict.likely or readings_text(verdict.readings) or verdict.label


def _extras_lines(entries: Sequence[JudgedRow]) -> list[str]:
    """Return what the methods of the rows store, and use beyond labels; no line where none does."""
    lines = []
    for name, meaning in (("memory", "stored images of earlier steps"), ("supervision", "beyond the labels")):
        found: dict[tuple[str, str | None], set[str]] = {}
        for entry in entries:
            found.setdefault((entry.row["method"], getattr(entry.extras, name)), set()).add(entry.row["dataset"])
        # Of a method that uses it on some of its data sets alone, these are named.
        used = [
            f"{method}: {text}" + (f" (on {', '.join(sorted(homes))})" if (method, NO) in found else "")
            for (method, text), homes in found.items()
            if text not in (None, NO)
        ]
        if used:
            lines.append(f"{name} ({meaning}): {'; '.join(used)}.")
    return lines


def _legend(entries: Sequence[JudgedRow]) -> str:
    rows = [entry.row for entry in entries]
    lines = _extras_lines(entries)
    if any(map(is_inferred, rows)):
        lines.append("A number with ?: its source does not print its setting, which is the likeliest one.")
    there = {row["kind"] for row in rows}
    lines.append("kind: " + "; ".join(f"{name}: {meaning}" for name, meaning in KINDS.items() if name in there) + ".")
    if any(row["run_by_inferred"] for row in rows):
        lines[-1] += " With ?: likely; no document says it."
    lines.append(
        "reading: where background counts (without: in neither old nor all; both; old-without: in all alone), by the "
        "row's arithmetic. x/y: both fit. x?: inferred, as it fits most rows of the same table. inconsistent: none "
        "fits. incomplete: old or new is not printed."
    )
    return "\n".join(paragraph(line, "  ") for line in lines)


def _in_order(entries: Sequence[JudgedRow]) -> list[JudgedRow]:
    """Sort by data set and listed setting, then by kind and network, the best first."""
    order, kinds = setting_order(row["setting"] for row, _ in entries), list(KINDS)

    def place(entry: JudgedRow) -> tuple[object, ...]:
        row = entry.row
        return order[row["setting"]], kinds.index(row["kind"]), row["backbone"], -(row["all"] or 0)

    return sorted(entries, key=place)
