"""Tables of measured numbers beside the published ones, as Markdown that reads well as plain text."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

from cispbench.reports.markdown import escape, markdown_table, number_text
from cispbench.reports.runs import (
    Group,
    Selection,
    comparable,
    comparison_warning,
    finished_runs,
    grouped,
    newest,
    run_json,
    score_record,
    scores_json,
    sorted_settings,
    variants,
)
from cispbench.results.ledger import KINDS, reported_rows
from cispbench.results.record import StepRecord
from cispbench.results.scores import Scores
from cispbench.results.store import Store
from cispbench.splits.errors import StoreError

_NUMBERS = ("old", "new", "all")
_SOURCE_WIDTH = 60


class _Cell(NamedTuple):
    """Runs that differ by their seeds alone."""

    method: str
    model: str
    setting: str
    variant: str  # "" for the recipe that came first, else the digest of another recipe, data or version


def run_table(records: Sequence[StepRecord], protocol: str = "strict") -> str:
    """Return one run's scores after its last recorded step, above the published rows of its method and setting.

    Raises StoreError if there is no record or if they belong to more than one run.
    """
    if len({record.run_key for record in records}) != 1:
        raise StoreError(f"a run's table needs the records of one run, not of {len({r.run_key for r in records})}.")
    last = max(records, key=lambda record: record.step)
    scores = score_record(last, protocol)
    rows = [
        [f"{last.method.name} (measured)", *(number_text(getattr(scores, name), 2) for name in _NUMBERS),
         f"{last.data.kind} data", last.model.name, f"profile {last.profile}, seed {last.seed}"]
    ]  # fmt: skip
    published = reported_rows(last.setting, last.method.name)
    for row in published:
        numbers = ["-" if row[name] is None else str(row[name]) for name in _NUMBERS]
        rows.append([row["method"], *numbers, row["kind"], row["backbone"], _short(row["source"])])
    lines = [
        f"{last.method.name} on {last.setting} after step {last.step}/{last.steps - 1}"
        f"{'' if last.finished else ' (not finished)'}, mIoU in percent, protocol {protocol}",
        "",
        markdown_table(["result", *_NUMBERS, "kind", "backbone", "source"], rows),
    ]
    if not published:
        lines += ["", f"The ledger holds no published numbers for {last.method.name} on {last.setting}."]
    if not comparable(last.data.kind, last.profile):
        lines += ["", comparison_warning(last.data.kind, last.profile)]
    return "\n".join(lines)


def step_line(record: StepRecord, protocol: str = "strict") -> str:
    """Return one line on a finished step: scores in percent, seconds it took, training images a second."""
    scores = score_record(record, protocol)
    numbers = "  ".join(f"{name} {number_text(getattr(scores, name), 1)}" for name in _NUMBERS)
    speed = record.timing.images_per_second
    pace = f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"
    cost = f"({record.timing.wall_seconds:.1f} s, {pace} images/s)"
    return f"step {record.step}/{record.steps - 1}  {numbers}  {cost}"


def store_table(store: Store, protocol: str = "strict", selection: Selection | None = None) -> str:
    """Return a table of the selected finished runs for each kind of data, profile and data set.

    Cells are the mean over seeds +- the sample standard deviation (from two seeds on), with the number of seeds
    beside. Of several runs of one seed the newest counts; a note says how many were superseded. On full data the
    published numbers of the same method and backbone stand in brackets.
    """
    finished = finished_runs(store, selection)
    if not finished:
        return f"No finished runs in {store.path}."
    return "\n\n".join(_group_table(group, records, protocol) for group, records in grouped(finished).items())


def _group_table(group: Group, records: list[StepRecord], protocol: str) -> str:
    kept = newest(records)
    digests = variants(kept)
    cells: dict[_Cell, list[Scores]] = defaultdict(list)
    for record in kept:
        cell = _Cell(record.method.name, record.model.name, record.setting, digests[record.run_key])
        cells[cell].append(score_record(record, protocol))
    settings = sorted_settings({cell.setting for cell in cells})
    rows = []
    for method, model, variant in sorted({(cell.method, cell.model, cell.variant) for cell in cells}):
        row = [f"{method} (variant {variant})" if variant else method, model]
        for setting in settings:
            row += _cell_texts(_Cell(method, model, setting, variant), cells, comparable(group.kind, group.profile))
        rows.append(row)
    headers = ["method", "model", *(f"{name} {what}" for name in settings for what in (*_NUMBERS, "seeds"))]
    lines = [
        f"### {escape(group.dataset)}, {group.kind} data, profile {escape(group.profile)}",
        "",
        f"mIoU in percent after the last step, protocol {protocol}; mean ± standard deviation over seeds.",
        "",
        markdown_table(headers, rows),
        "",
        _published_note() if comparable(group.kind, group.profile) else comparison_warning(group.kind, group.profile),
    ]
    superseded = len(records) - len(kept)
    if superseded:
        lines += ["", f"Superseded by a newer run of the same seed, and not counted: {superseded}."]
    if any(digests.values()):
        lines += ["", "A variant differs from the first run of its row in recipe, weights, data or method version."]
    return "\n".join(lines)


def _cell_texts(cell: _Cell, cells: dict[_Cell, list[Scores]], beside_published: bool) -> list[str]:
    if cell not in cells:
        return ["", "", "", ""]
    scores = cells[cell]
    published = _published(cell) if beside_published else []
    texts = [
        _mean_text([float(getattr(entry, name)) for entry in scores]) + _bracket([row[name] for row in published])
        for name in _NUMBERS
    ]
    return [*texts, str(len(scores))]


def _mean_text(values: list[float]) -> str:
    if any(math.isnan(value) for value in values):
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _bracket(published: list[float | None]) -> str:
    """Return the published values in brackets: one, or the lowest and the highest."""
    printed = sorted({value for value in published if value is not None})
    if not printed:
        return ""
    return f" [{printed[0]}]" if len(printed) == 1 else f" [{printed[0]} to {printed[-1]}]"


def _published(cell: _Cell) -> list[dict[str, Any]]:
    """Return the published rows of a cell's backbone, of the most direct kind that exists."""
    rows = [row for row in reported_rows(cell.setting, cell.method) if _same_backbone(cell.model, row["backbone"])]
    for kind in KINDS:
        chosen = [row for row in rows if row["kind"] == kind]
        if chosen:
            return chosen
    return []


def _same_backbone(model: str, backbone: str) -> bool:
    """Say whether every word of a published backbone is a run of parts of the model's name.

    ``ViT-B/16 (Segmenter)`` is ``segmenter-vit-b16``; plain ``ViT-B`` is not.
    """
    parts = model.lower().split("-")
    runs = {"".join(parts[start:end]) for start, end in combinations(range(len(parts) + 1), 2)}
    words = backbone.lower().translate(str.maketrans("", "", "-/()")).split()
    return set(words) <= runs


def _published_note() -> str:
    return (
        "In brackets: published numbers for the same method and backbone (lowest to highest where sources differ), as "
        "reported by the paper that ran it, else as excerpted or reproduced by others; they follow their own protocols."
    )


def _short(source: str) -> str:
    return source if len(source) <= _SOURCE_WIDTH else source[: _SOURCE_WIDTH - 1].rstrip(" ,(:") + "…"


def store_json(store: Store, protocol: str = "strict", selection: Selection | None = None) -> str:
    """Return the selected finished runs as a JSON list: what identifies a run, and its scores (null if undefined)."""
    rows = [
        {**run_json(record), "protocol": protocol, **scores_json(score_record(record, protocol))}
        for record in newest(finished_runs(store, selection))
    ]
    return json.dumps(rows, allow_nan=False)
