"""The lint of the ledger: over which classes old, new and all of each published row can be means."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

from cispbench.reports.ledger.rows import Filter, JudgedRow, readings_text, references_text, select
from cispbench.reports.tables.published import References, printed_texts
from cispbench.reports.tables.runs import SCORES
from cispbench.reports.tables.terminal import paragraph, plain_table
from cispbench.results.conventions import conventions, table_of
from cispbench.results.duplicates import duplicates
from cispbench.results.ledger import LABELS, READINGS, arithmetic, ledger_rows
from cispbench.splits.errors import UsageError, nearest

_SOURCE_WIDTH = {1: 28, 2: 16}  # characters; by the number of columns that name a count
_BY = {"source": ("source",), "method": ("method",), "both": ("source", "method")}
MEANING = {
    "without": "background is in neither old nor all",
    "both": "background is in both",
    "old-without": "background is in all alone, its IoU is 80 to 100",
    "inconsistent": "none fits, beyond the rounding of the digits",
    "incomplete": "one of old, new and all is not printed",
}


def lint_text(chosen: Filter, by: str = "source", each: bool = False) -> str:
    """Return the counts of every reading in total and ``by`` source, method or both, rows that fit none, duplicates.

    ``each`` lists every row with all readings that fit. Raises as ``select`` does.
    """
    if by not in _BY:
        raise UsageError(f"cannot count by {by!r}.", hint=nearest(by, _BY))
    entries = select(chosen)
    if not entries:
        return f"The ledger holds no row of {chosen}."
    parts = [_totals(entries), _counts(entries, _BY[by]), _misfits(entries), _twice(entries)]
    parts.append(_each(entries) if each else "")
    return "\n\n".join(filter(None, parts))


def lint_json(chosen: Filter) -> str:
    """Return the counts in total, by source and by method, and every row with its readings. Raises as ``select``."""
    entries = select(chosen)
    content = _summary(entries)
    content["duplicates"] = duplicates([entry.row for entry in entries])
    for name in ("source", "method"):
        content[f"by_{name}"] = {key: _summary(group) for (key,), group in _grouped(entries, (name,)).items()}
    return json.dumps({**content, "each": [entry.as_json() for entry in entries]}, allow_nan=False)


def _summary(entries: Sequence[JudgedRow]) -> dict[str, object]:
    verdicts = [entry.verdict for entry in entries]
    labels, likely = Counter(verdict.label for verdict in verdicts), Counter(verdict.likely for verdict in verdicts)
    return {
        "rows": len(verdicts),
        "counts": {name: labels[name] for name in LABELS},
        "ambiguous": sum(verdict.ambiguous for verdict in verdicts),
        "likely": {name: likely[name] for name in READINGS},
        "inferred": sum(verdict.inferred for verdict in verdicts),
    }


def _totals(entries: Sequence[JudgedRow]) -> str:
    verdicts = [entry.verdict for entry in entries]
    counts: dict[str, Counter[str | None]] = {
        "rows": Counter(verdict.label for verdict in verdicts),
        "ambiguous": Counter(verdict.label for verdict in verdicts if verdict.ambiguous),
        "likely": Counter(verdict.likely for verdict in verdicts),
        "inferred": Counter(verdict.likely for verdict in verdicts if verdict.inferred),
    }
    rows = []
    for name in LABELS:
        # What is no reading can be neither ambiguous nor likely: its row stays empty there, instead of zeros.
        shown = [str(count[name]) if name in READINGS or of == "rows" else "" for of, count in counts.items()]
        rows.append([name, *shown, MEANING[name]])
    undecided = sum(verdict.likely is None and verdict.label != "incomplete" for verdict in verdicts)
    totals = [str(sum(count[name] for name in LABELS)) for count in counts.values()]
    rows.append(["in total", *totals, f"likely is undecided for {undecided} more" if undecided else ""])
    note = (
        "A row counts under the first reading that fits; where several fit, it is ambiguous. likely: the only reading "
        "that fits, or else (inferred) the one that fits most rows of the table: the results that a source ran, or "
        "its excerpts of one method."
    )
    table = plain_table(["reading", *counts, "meaning"], rows, counts)
    return "\n\n".join([f"{len(entries)} published rows", table, paragraph(note)])


def _counts(entries: Sequence[JudgedRow], names: Sequence[str]) -> str:
    kept = {source: reading for (source, copied), reading in conventions(ledger_rows()).items() if not copied}
    rows = []
    for group in _grouped(entries, names).values():
        first = group[0].row
        labels = Counter(entry.verdict.label for entry in group)
        counts = {name: str(labels[name] or "") for name in LABELS}
        if "source" in names and any(not table_of(entry.row)[1] for entry in group):
            convention = kept.get(first["source"])
            if convention:
                counts[convention] += "*"
        source = _short(first["source"], _SOURCE_WIDTH[len(names)]) if "source" in names else ""
        method = first["method"] if "method" in names else ""
        ambiguous = str(sum(entry.verdict.ambiguous for entry in group) or "")
        rows.append([source, method, str(len(group)), *counts.values(), ambiguous])
    headers = ["source", "method", "rows", *LABELS, "ambiguous"]
    text = plain_table(headers, rows, headers[2:])
    note = "* convention of the source: the reading that fits most of the results that it ran itself."
    return f"{text}\n\n{note}" if "*" in text else text


def _grouped(entries: Sequence[JudgedRow], names: Sequence[str]) -> dict[tuple[str, ...], list[JudgedRow]]:
    groups: dict[tuple[str, ...], list[JudgedRow]] = {}
    for entry in sorted(entries, key=lambda entry: [entry.row[name].lower() for name in names]):
        groups.setdefault(tuple(entry.row[name] for name in names), []).append(entry)
    return groups


def _short(source: str, width: int) -> str:
    text = re.sub(r"\s*\([^)]*\)", "", source)
    return text if len(text) <= width else f"{text[: width - 9].rstrip()}…{text[-8:].lstrip()}"


def _misfits(entries: Sequence[JudgedRow]) -> str:
    references, rows = References(), []
    for row, verdict in entries:
        found = arithmetic(row)
        if verdict.label != "inconsistent" or found is None:
            continue
        computed = [f"{found.without:.2f}", f"{found.both:.2f}", f"{found.background:.1f}"]
        gap = f"{float(min(found.gaps.values())):.2f}"
        likely = verdict.likely or ""
        source = references.mark(row["kind"], row["source"], row["note"])
        rows.append([row["setting"], row["method"], *printed_texts(row), *computed, gap, likely, source])
    if not rows:
        return ""
    headers = ["setting", "method", *SCORES, "without", "both", "bg IoU", "off", "likely", "ref"]
    note = (
        "Inconsistent rows. without, both: the all that old and new give under that reading. bg IoU: that of "
        "the background if all alone counts it. off: how far all is from the nearest reading, beyond rounding. "
        "likely: the reading of most rows of its table."
    )
    return "\n\n".join([paragraph(note), plain_table(headers, rows, headers[2:9]), references_text(references)])


def _twice(entries: Sequence[JudgedRow]) -> str:
    references = References()
    rows = [
        [row["setting"], row["method"], *printed_texts(row), row["backbone"], references.mark(row["source"])]
        for pair in duplicates([entry.row for entry in entries])
        for row in pair
    ]
    if not rows:
        return ""
    note = (
        "Printed twice: these rows are one number, in pairs. Keep one of them, and name the other's document in `also`."
    )
    headers = ["setting", "method", *SCORES, "network", "ref"]
    return "\n\n".join([paragraph(note), plain_table(headers, rows, SCORES), references_text(references)])


def _each(entries: Sequence[JudgedRow]) -> str:
    references, rows = References(), []
    for row, verdict in entries:
        fits = readings_text(verdict.readings) or verdict.label
        likely = f"{verdict.likely}{'?' if verdict.inferred else ''}" if verdict.likely else ""
        words = [fits, likely, references.mark(row["source"])]
        rows.append([row["setting"], row["method"], *printed_texts(row), *words])
    headers = ["setting", "method", *SCORES, "fits", "likely", "source"]
    note = "Every row: all readings that fit (x/y: ambiguous), and the likely one (?: inferred from its table)."
    return "\n\n".join([note, plain_table(headers, rows, SCORES), references_text(references)])
