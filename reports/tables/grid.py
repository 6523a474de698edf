"""The table of a store as papers print it: methods below each other, settings by old, new and all beside each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cispbench.reports.tables.cells import Cell, by_group
from cispbench.reports.tables.extras import extra_columns, measured_extras
from cispbench.reports.tables.layout import Column, Section, Table, Text, plain
from cispbench.reports.tables.numbers import LOWER_IS_BETTER, mean_text, number_text, ranks, signed
from cispbench.reports.tables.published import Published, closest, printed_range, published_section
from cispbench.reports.tables.runs import NUMBERS, SCORES, Group, Run, setting_order
from cispbench.results.continual import METRICS
from cispbench.splits.errors import UsageError, nearest

SEEDS = "seeds"
COLUMNS = (*NUMBERS, SEEDS)
TITLES = {
    "pixel_accuracy": "pixel accuracy", "average_over_steps": "average over steps",
    "backward_transfer": "backward transfer", "harmonic": "harmonic mean",
}  # fmt: skip


@dataclass(frozen=True)
class TableOptions:
    """What a table shows of its cells. ``columns``: of ``COLUMNS``, below each setting; ``decimals`` of every number.

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


def table_options(
    columns: str | None, metrics: bool = False, decimals: int = 2, published: bool | None = None, form: str = "markdown"
) -> TableOptions:
    """Return the options of a table; ``columns``: names with commas between, ``metrics``: all continual metrics, too.

    Without ``columns``: old, new, all and the number of seeds; in LaTeX without the seeds, as papers print them.
    Raises UsageError on an unknown or repeated name.
    """
    usual = SCORES if form == "latex" else (*SCORES, SEEDS)
    names = usual if columns is None else tuple(name.strip() for name in columns.split(","))
    added = tuple(name for name in METRICS if metrics and name not in names)
    end = len(names) - (names[-1] == SEEDS)  # the number of seeds stays last
    return TableOptions((*names[:end], *added, *names[end:]), decimals, published)


def sections(cells: Sequence[Cell], protocol: str, options: TableOptions) -> list[Section]:
    """Return a section for each kind of data, profile and data set, and one of published rows where asked for."""
    found = []
    for group, members in by_group(cells).items():
        found.append(_section(group, members, protocol, options))
        if options.published:
            found += published_section(members, options.decimals)
    return found


def run_sections(runs: Sequence[Run], protocol: str, options: TableOptions) -> list[Section]:
    """Return a section for each kind of data, profile and data set, with one row per run."""
    names = [name for name in options.columns if name != SEEDS]
    intro = f"mIoU in percent after the last step, protocol {protocol}; one run per row."
    order = setting_order(run.facts.setting for run in runs)
    found = []
    for group, members in by_group(runs).items():
        shown = sorted(members, key=lambda run: (order[run.facts.setting], run.facts.method.title, run.facts.seed))
        extra, extras = extra_columns([measured_extras([run]) for run in shown])
        columns = [Column(name) for name in ("setting", "method", "model", *extra, "seed", "run", "origin")]
        columns += [Column(TITLES.get(name, name), right=True) for name in names]
        rows = []
        for run, used in zip(shown, extras, strict=True):
            facts = run.facts
            words = [facts.setting, facts.method.title, facts.model.name, *used, str(facts.seed), facts.run_key[:10]]
            numbers = [number_text(run.number(name), options.decimals) for name in names]
            rows.append(plain([*words, facts.origin, *numbers]))
        found.append(Section(_heading(group), intro, Table(columns, rows), group.warnings))
    return found


def _section(group: Group, members: Sequence[Cell], protocol: str, options: TableOptions) -> Section:
    found: dict[tuple[bool, str, str, str], dict[str, Cell]] = defaultdict(dict)
    for cell in members:
        found[cell.joint, cell.key.method, cell.key.model, cell.key.remark()][cell.setting] = cell
    labels = sorted(found)  # upper bounds come last
    extra, extras = extra_columns(
        [measured_extras(run for cell in found[label].values() for run in cell.runs) for label in labels]
    )
    texts = [
        plain([f"{method} ({remark})" if remark else method, model, *used])
        for (_, method, model, remark), used in zip(labels, extras, strict=True)
    ]
    columns = [Column(name) for name in ("method", "model", *extra)]
    for setting in setting_order(cell.setting for cell in members):
        column = [found[label].get(setting) for label in labels]
        for name in options.columns:
            columns.append(Column(TITLES.get(name, name), setting, right=True))
            for row, text in zip(texts, _column(column, name, options), strict=True):
                row.append(text)
    first_bound = sum(not joint for joint, *_ in labels)
    rules = {first_bound} if 0 < first_bound < len(labels) else ()
    return Section(
        _heading(group),
        f"mIoU in percent after the last step, protocol {protocol}; mean ± standard deviation over seeds.",
        Table(columns, texts, frozenset(rules)),
        _notes(group, members, options),
    )


def _heading(group: Group) -> str:
    return f"{group.dataset}, {group.kind} data, profile {group.profile}"


def _column(column: Sequence[Cell | None], name: str, options: TableOptions) -> list[Text]:
    if name == SEEDS:
        return [Text(str(len(cell.runs)) if cell else "") for cell in column]
    competing = [cell.numbers[name].mean if cell is not None and cell.ranked else None for cell in column]
    texts = []
    found = ranks(competing, options.decimals, lower=name in LOWER_IS_BETTER)
    for cell, rank in zip(column, found, strict=True):
        text = mean_text(cell.numbers[name].mean, cell.numbers[name].std, options.decimals) if cell else ""
        if cell and name in SCORES and options.published is not False:
            text += _bracket(closest(cell), name, options)
        texts.append(Text(text, rank))
    return texts


def _bracket(rows: Sequence[Published], name: str, options: TableOptions) -> str:
    """Return the printed numbers in brackets, one or the lowest and the highest, with the differences if asked for."""
    printed = printed_range(rows, name)
    if printed is None:
        return ""
    differences = sorted(value for entry in rows if (value := entry.differences[name]) is not None)
    parts = [_range([str(value) for value in printed])]
    if options.published and differences:
        parts.append(_range([signed(value, options.decimals) for value in (differences[0], differences[-1])]))
    return f" [{', '.join(parts)}]"


def _range(ends: Sequence[str]) -> str:
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _notes(group: Group, members: Sequence[Cell], options: TableOptions) -> list[str]:
    notes = group.warnings
    if group.comparable and options.published is not False:
        notes.append(
            "In brackets: published numbers for the same method and backbone (lowest to highest where sources differ), "
            "as run by its authors, else as run by others; they follow their own "
            "protocols." + (" Behind them: measured minus published." if options.published else "")
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
    if len({cell.key.devices for cell in members}) > 1:
        notes.append("Runs on different numbers of devices have rows of their own: they are never averaged together.")
    if any(name in METRICS for name in options.columns):
        notes.append(
            "Forgetting and intransigence: lower is better. A dash: unknown, as there is no joint run on the same "
            "setting, model and data, or the record of a step is missing."
        )
    return notes
