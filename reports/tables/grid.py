"""The table of a store as papers print it: methods below each other, settings by old, new and all beside each other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cispbench.reports.tables.aggregate import NUMBERS, SCORES, Cell, Run, by_group
from cispbench.reports.tables.layout import Column, Section, Table, Text, plain
from cispbench.reports.tables.published import Published, closest, printed_range, published
from cispbench.reports.tables.ranking import LOWER_IS_BETTER, ranks, shown, signed
from cispbench.reports.tables.runs import Group, comparable, comparison_warning, sorted_settings
from cispbench.results.continual import METRICS
from cispbench.splits.errors import UsageError, nearest

SEEDS = "seeds"
COLUMNS = (*NUMBERS, SEEDS)
TITLES = {
    "pixel_accuracy": "pixel accuracy", "average_over_steps": "average over steps",
    "backward_transfer": "backward transfer", "harmonic": "harmonic mean",
}  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """What of the cells is shown. ``columns``: of ``COLUMNS``, below each setting; ``decimals`` of every number.

    ``published``: None the printed numbers in brackets, True also the differences and the published rows, False none.
    """

    columns: tuple[str, ...] = (*SCORES, SEEDS)
    decimals: int = 2
    published: bool | None = None

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in COLUMNS:
                raise UsageError(f"unknown column {name!r}.", hint=nearest(name, COLUMNS))
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise UsageError("the columns are to be named once each.", hint=f"Known: {', '.join(COLUMNS)}.")


def shown_columns(
    columns: str | None, metrics: bool = False, decimals: int = 2, published: bool | None = None, form: str = "markdown"
) -> Shown:
    """Return what is shown from words with commas between, and all continual metrics after them if asked for.

    Without ``columns``: old, new, all and the number of seeds; in LaTeX without these, as papers print them.
    Raises UsageError on an unknown or repeated name.
    """
    usual = SCORES if form == "latex" else (*SCORES, SEEDS)
    names = usual if columns is None else tuple(name.strip() for name in columns.split(","))
    added = tuple(name for name in METRICS if metrics and name not in names)
    place = len(names) - (names[-1] == SEEDS)
    return Shown((*names[:place], *added, *names[place:]), decimals, published)


class _Label(NamedTuple):
    """What stands at the left of a row; upper bounds come last."""

    joint: bool
    method: str
    model: str
    remark: str


def sections(cells: Sequence[Cell], protocol: str, chosen: Shown) -> list[Section]:
    """Return a section for each kind of data, profile and data set, and one of published rows where asked for."""
    found = []
    for group, members in by_group(cells).items():
        found.append(_section(group, members, protocol, chosen))
        if chosen.published:
            found += _published_section(group, members, chosen.decimals)
    return found


def run_sections(runs: Sequence[Run], protocol: str, chosen: Shown) -> list[Section]:
    """Return a section for each kind of data, profile and data set, with one row a run."""
    groups: dict[Group, list[Run]] = defaultdict(list)
    for run in runs:
        groups[Group(run.facts.data.kind, run.facts.profile, run.facts.dataset)].append(run)
    return [_run_section(group, groups[group], protocol, chosen) for group in sorted(groups)]


def remark(cell: Cell) -> str:
    """Return what sets a cell apart from others of its method and model: variant, origin, import; "" if nothing."""
    key = cell.key
    parts = [f"variant {key.variant}" if key.variant else "", "" if key.origin == "measured" else key.origin]
    return ", ".join(part for part in (*parts, "from an imported step" if key.imported else "") if part)


def _section(group: Group, members: Sequence[Cell], protocol: str, chosen: Shown) -> Section:
    settings = sorted_settings({cell.setting for cell in members})
    placed = {(_label(cell), cell.setting): cell for cell in members}
    labels = sorted({label for label, _ in placed})
    rows = [[label.method + (f" ({label.remark})" if label.remark else ""), label.model] for label in labels]
    texts = [plain(row) for row in rows]
    columns = [Column("method"), Column("model")]
    for setting in settings:
        column = [placed.get((label, setting)) for label in labels]
        for name in chosen.columns:
            columns.append(Column(TITLES.get(name, name), setting, right=True))
            for row, text in zip(texts, _column(column, name, chosen), strict=True):
                row.append(text)
    bounds = [place for place, label in enumerate(labels) if label.joint and place and not labels[place - 1].joint]
    return Section(
        _heading(group),
        f"mIoU in percent after the last step, protocol {protocol}; mean ± standard deviation over seeds.",
        Table(columns, texts, frozenset(bounds)),
        _notes(group, members, chosen),
    )


def _run_section(group: Group, runs: Sequence[Run], protocol: str, chosen: Shown) -> Section:
    names = [name for name in chosen.columns if name != SEEDS]
    columns = [Column(name) for name in ("setting", "method", "model", "seed", "run", "origin")]
    columns += [Column(TITLES.get(name, name), right=True) for name in names]
    places = {name: place for place, name in enumerate(sorted_settings({run.facts.setting for run in runs}))}
    ordered = sorted(runs, key=lambda run: (places[run.facts.setting], run.facts.method.name, run.facts.seed))
    rows = [
        plain([
            run.facts.setting, run.facts.method.name, run.facts.model.name, str(run.facts.seed), run.facts.run_key[:10],
            run.facts.origin, *(shown(run.number(name), chosen.decimals) for name in names),
        ])
        for run in ordered
    ]  # fmt: skip
    return Section(
        _heading(group),
        f"mIoU in percent after the last step, protocol {protocol}; one run a row.",
        Table(columns, rows),
        [] if comparable(group.kind, group.profile) else [comparison_warning(group.kind, group.profile)],
    )


def _heading(group: Group) -> str:
    return f"{group.dataset}, {group.kind} data, profile {group.profile}"


def _label(cell: Cell) -> _Label:
    return _Label(cell.joint, cell.key.method, cell.key.model, remark(cell))


def _column(column: Sequence[Cell | None], name: str, chosen: Shown) -> list[Text]:
    if name == SEEDS:
        return [Text(str(len(cell.runs)) if cell else "") for cell in column]
    ranked = [cell.numbers[name].mean if cell is not None and cell.ranked else None for cell in column]
    places = ranks(ranked, chosen.decimals, lower=name in LOWER_IS_BETTER)
    return [Text(_number(cell, name, chosen) if cell else "", rank) for cell, rank in zip(column, places, strict=True)]


def _number(cell: Cell, name: str, chosen: Shown) -> str:
    number = cell.numbers[name]
    text = shown(number.mean, chosen.decimals)
    if not math.isnan(number.std):
        text += f" ± {shown(number.std, chosen.decimals)}"
    if name in SCORES and chosen.published is not False:
        text += _bracket(closest(cell), name, chosen)
    return text


def _bracket(rows: Sequence[Published], name: str, chosen: Shown) -> str:
    """Return the printed numbers in brackets, one or the lowest and the highest, with the differences if asked for."""
    printed = printed_range(rows, name)
    if printed is None:
        return ""
    differences = [entry.differences[name] for entry in rows]
    known = sorted({value for value in differences if value is not None})
    parts = [_range([str(value) for value in printed])]
    if chosen.published and known:
        parts.append(_range([signed(value, chosen.decimals) for value in (known[0], known[-1])]))
    return f" [{', '.join(parts)}]"


def _range(ends: Sequence[str]) -> str:
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _notes(group: Group, members: Sequence[Cell], chosen: Shown) -> list[str]:
    notes = []
    if not members[0].comparable:
        notes.append(comparison_warning(group.kind, group.profile))
    elif chosen.published is not False:
        notes.append(
            "In brackets: published numbers for the same method and backbone (lowest to highest where sources differ), "
            "as reported by the paper that ran it, else as excerpted or reproduced by others; they follow their own "
            "protocols." + (" Behind them: measured minus published." if chosen.published else "")
        )
    if any(not cell.ranked and not cell.joint for cell in members):
        notes.append(
            "Submitted rows, scored predictions and runs that go on from an imported step are shown, not ranked."
        )
    superseded = sum(cell.superseded for cell in members)
    if superseded:
        notes.append(f"Superseded by a newer run of the same seed, and not counted: {superseded}.")
    if any(cell.key.variant for cell in members):
        notes.append("A variant differs from the first run of its row in recipe, weights, data or method version.")
    if any(name in METRICS for name in chosen.columns):
        notes.append("Forgetting and intransigence are the better the lower; a dash: unknown, for want of a joint run "
                     "on the same setting, model and data, or of a step's record.")  # fmt: skip
    return notes


def _published_section(group: Group, members: Sequence[Cell], decimals: int) -> list[Section]:
    found = [(cell, entry) for cell in members for entry in published(cell)]
    if not found:
        return []
    sources = {_source(entry): None for _, entry in found}
    numbers = {source: f"[{number}]" for number, source in enumerate(sources, start=1)}
    columns = [Column(name) for name in ("setting", "method", "model")]
    columns += [Column(name, "published", right=True) for name in SCORES]
    columns += [Column(name, "measured - published", right=True) for name in SCORES]
    columns += [Column(name) for name in ("kind", "backbone", "reading", "source")]
    rows = [[*_published_row(cell, entry, decimals), numbers[_source(entry)]] for cell, entry in found]
    return [
        Section(
            f"{group.dataset}: published rows of the methods measured",
            "As printed, in percent; reading: where background counts (?: inferred from its table).",
            Table(columns, [plain(row) for row in rows]),
            [f"{number} {source}." for source, number in numbers.items()],
        )
    ]


def _source(entry: Published) -> str:
    assigned = entry.row["assignment"]
    parts = (entry.row["source"], entry.row["note"], assigned and f"Assignment of the setting: {assigned}")
    return ". ".join(" ".join(part.split()).rstrip(".") for part in parts if part)


def _published_row(cell: Cell, entry: Published, decimals: int) -> list[str]:
    row, verdict = entry.row, entry.verdict
    likely = f"{verdict.likely}{'?' if verdict.inferred else ''}" if verdict.likely else verdict.label
    differences = [entry.differences[name] for name in SCORES]
    return [
        cell.setting, cell.key.method, cell.key.model,
        *("-" if row[name] is None else str(row[name]) for name in SCORES),
        *("-" if value is None else signed(value, decimals) for value in differences),
        row["kind"] + (" (setting inferred)" if entry.setting_inferred else ""),
        row["backbone"] + ("" if entry.same_backbone else " (another)"), likely,
    ]  # fmt: skip
