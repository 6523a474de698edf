"""Tables of measured numbers beside the published ones, as Markdown that reads well as plain text."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import combinations
from typing import Any, NamedTuple

from tabulate import tabulate

from cispbench.results.ledger import reported_rows
from cispbench.results.record import StepRecord
from cispbench.results.scores import Scores, score
from cispbench.results.store import Store
from cispbench.splits.errors import StoreError
from cispbench.splits.settings import list_settings, parse_setting

_NUMBERS = ("old", "new", "all")
_KINDS = ("reported", "excerpted", "reproduced")
_SOURCE_WIDTH = 60
_DATA = {"mini": "a small part of the real data", "synthetic": "synthetic scenes"}


class _Group(NamedTuple):
    """Runs that may stand in one table."""

    kind: str
    profile: str
    dataset: str


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
    scores = _score(last, protocol)
    rows = [
        [f"{last.method.name} (measured)", *(_number(getattr(scores, name), 2) for name in _NUMBERS),
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
        _markdown(["result", *_NUMBERS, "kind", "backbone", "source"], rows),
    ]
    if not published:
        lines += ["", f"The ledger holds no published numbers for {last.method.name} on {last.setting}."]
    if not _comparable(last.data.kind, last.profile):
        lines += ["", _warning(last.data.kind, last.profile)]
    return "\n".join(lines)


def step_line(record: StepRecord, protocol: str = "strict") -> str:
    """Return one line on a finished step: scores in percent, seconds it took, training images a second."""
    scores = _score(record, protocol)
    numbers = "  ".join(f"{name} {_number(getattr(scores, name), 1)}" for name in _NUMBERS)
    speed = record.timing.images_per_second
    pace = f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"
    cost = f"({record.timing.wall_seconds:.1f} s, {pace} images/s)"
    return f"step {record.step}/{record.steps - 1}  {numbers}  {cost}"


def store_table(store: Store, protocol: str = "strict") -> str:
    """Return a table of the finished runs for each kind of data, profile and data set.

    Cells are the mean over seeds +- the sample standard deviation (from two seeds on), with the number of seeds
    beside. Of several runs of one seed the newest counts; a note says how many were superseded. On full data the
    published numbers of the same method and backbone stand in brackets.
    """
    finished = [record for record in store.records() if record.finished]
    if not finished:
        return f"No finished runs in {store.path}."
    groups: dict[_Group, list[StepRecord]] = defaultdict(list)
    for record in finished:
        groups[_Group(record.data.kind, record.profile, record.dataset)].append(record)
    return "\n\n".join(_group_table(group, groups[group], protocol) for group in sorted(groups))


def _group_table(group: _Group, records: list[StepRecord], protocol: str) -> str:
    newest = _newest(records)
    variants = _variants(newest)
    cells: dict[_Cell, list[Scores]] = defaultdict(list)
    for record in newest:
        cell = _Cell(record.method.name, record.model.name, record.setting, variants[record.run_key])
        cells[cell].append(_score(record, protocol))
    settings = _sorted_settings({cell.setting for cell in cells})
    rows = []
    for method, model, variant in sorted({(cell.method, cell.model, cell.variant) for cell in cells}):
        row = [f"{method} (variant {variant})" if variant else method, model]
        for setting in settings:
            row += _cell_texts(_Cell(method, model, setting, variant), cells, _comparable(group.kind, group.profile))
        rows.append(row)
    headers = ["method", "model", *(f"{name} {what}" for name in settings for what in (*_NUMBERS, "seeds"))]
    lines = [
        f"### {_escape(group.dataset)}, {group.kind} data, profile {_escape(group.profile)}",
        "",
        f"mIoU in percent after the last step, protocol {protocol}; mean ± standard deviation over seeds.",
        "",
        _markdown(headers, rows),
        "",
        _published_note() if _comparable(group.kind, group.profile) else _warning(group.kind, group.profile),
    ]
    superseded = len(records) - len(newest)
    if superseded:
        lines += ["", f"Superseded by a newer run of the same seed, and not counted: {superseded}."]
    if any(variants.values()):
        lines += ["", "A variant differs from the first run of its row in recipe, weights, data or method version."]
    return "\n".join(lines)


def _newest(records: Iterable[StepRecord]) -> list[StepRecord]:
    """Keep, of the runs that differ by nothing but their code, the one that was trained last."""
    kept: dict[tuple[str | int, ...], StepRecord] = {}
    for record in sorted(records, key=lambda record: (datetime.fromisoformat(record.created), record.run_key)):
        group = (record.data.kind, record.profile, record.dataset)
        kept[*group, record.method.name, record.model.name, record.setting, record.seed, _digest(record)] = record
    return list(kept.values())


def _digest(record: StepRecord) -> str:
    """Return a short digest of what a person can change about a run besides its seed."""
    parts = [record.recipe, record.method.version, record.method.options, record.model.weights_sha256]
    content = json.dumps([*parts, record.data.fingerprint], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:6]


def _variants(records: Iterable[StepRecord]) -> dict[str, str]:
    """Return, by run key, "" for runs of the recipe that came first in their row, else the digest of theirs."""
    first: dict[tuple[str, str, str], str] = {}
    variants = {}
    for record in sorted(records, key=lambda record: (datetime.fromisoformat(record.created), record.run_key)):
        digest = _digest(record)
        usual = first.setdefault((record.method.name, record.model.name, record.setting), digest)
        variants[record.run_key] = "" if digest == usual else digest
    return variants


def _comparable(kind: str, profile: str) -> bool:
    return kind == "full" and profile == "paper"


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
    for kind in _KINDS:
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


def _sorted_settings(names: set[str]) -> list[str]:
    listed = [setting.name for setting in list_settings()]
    return sorted(names, key=lambda name: (listed.index(name) if name in listed else len(listed), name))


def _score(record: StepRecord, protocol: str) -> Scores:
    """Score a record; a joint run's only step is the last one, whatever steps its setting has."""
    return score(record.confusion, parse_setting(record.setting), None if record.joint else record.step, protocol)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _warning(kind: str, profile: str) -> str:
    measured = f"Measured on {_DATA[kind]}" if kind in _DATA else f"Measured under the profile {profile}"
    return f"{measured}: these numbers are NOT comparable with published ones."


def _published_note() -> str:
    return (
        "In brackets: published numbers for the same method and backbone (lowest to highest where sources differ), as "
        "reported by the paper that ran it, else as excerpted or reproduced by others; they follow their own protocols."
    )


def _short(source: str) -> str:
    return source if len(source) <= _SOURCE_WIDTH else source[: _SOURCE_WIDTH - 1].rstrip(" ,(:") + "…"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a GitHub table whose cells show exactly the given texts."""
    escaped = [[_escape(text) for text in row] for row in rows]
    return tabulate(escaped, [_escape(text) for text in headers], tablefmt="github", disable_numparse=True)


def store_json(store: Store, protocol: str = "strict") -> str:
    """Return the finished runs as a JSON list: what identifies each run, and its scores (null where undefined)."""
    rows = []
    for record in _newest([record for record in store.records() if record.finished]):
        scores = _score(record, protocol)
        numbers = {name: getattr(scores, name) for name in (*_NUMBERS, "harmonic", "pixel_accuracy")}
        rows.append(
            {
                "dataset": record.dataset, "setting": record.setting, "method": record.method.name,
                "model": record.model.name, "profile": record.profile, "data": record.data.kind, "seed": record.seed,
                "run_key": record.run_key, "protocol": protocol,
                **{name: None if math.isnan(value) else value for name, value in numbers.items()},
            }
        )  # fmt: skip
    return json.dumps(rows, allow_nan=False)
