"""Tables of measured numbers beside the published ones: of one run, of one step, and of a whole store."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from cispbench.reports.tables.cells import cells, latest
from cispbench.reports.tables.data import cell_csv_row, cell_data, run_data, write_csv
from cispbench.reports.tables.extras import recorded_texts
from cispbench.reports.tables.grid import TableOptions, run_sections, sections
from cispbench.reports.tables.html import render_html
from cispbench.reports.tables.latex import render_latex
from cispbench.reports.tables.layout import Section
from cispbench.reports.tables.markdown import render_markdown
from cispbench.reports.tables.numbers import number_text
from cispbench.reports.tables.published import kind_text, printed_texts
from cispbench.reports.tables.runs import SCORES, Selection, group_of, nothing_finished, score_record
from cispbench.reports.tables.scoring import load_runs
from cispbench.reports.tables.terminal import render_terminal, table_text
from cispbench.results.atomic import write_atomic
from cispbench.results.documents import KINDS
from cispbench.results.ledger import reported_rows
from cispbench.results.record import StepRecord
from cispbench.results.store import Store
from cispbench.splits.errors import StoreError, UsageError, nearest

DATA_FORMATS = ("csv", "json")
FORMATS = ("terminal", "markdown", "latex", *DATA_FORMATS, "html")
_ENDINGS = {
    ".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json", ".html": "html", ".txt": "terminal",
}  # fmt: skip
_SOURCE_WIDTH = 60


def run_table(records: Sequence[StepRecord], protocol: str = "strict", terminal: bool = False) -> str:
    """Return a run's last scores above the published rows of its method and setting; not one run: StoreError.

    ``terminal``: for a terminal, not as Markdown.
    """
    if len({record.run_key for record in records}) != 1:
        raise StoreError(f"a run's table needs the records of one run, not of {len({r.run_key for r in records})}.")
    last = max(records, key=lambda record: record.step)
    scores = score_record(last, protocol)
    memory, supervision = recorded_texts([last])
    used = [f"memory {memory}"] * bool(memory) + [f"supervision {supervision}"] * bool(supervision)
    rows = [
        [f"{last.method.title} ({last.origin})", *(number_text(getattr(scores, name), 2) for name in SCORES),
         f"{last.data.kind} data", last.model.name, ", ".join([f"profile {last.profile}", f"seed {last.seed}", *used])]
    ]  # fmt: skip
    published = sorted(reported_rows(last.setting, last.method.title), key=lambda row: list(KINDS).index(row["kind"]))
    for row in published:
        source = row["source"]
        if len(source) > _SOURCE_WIDTH:
            source = source[: _SOURCE_WIDTH - 1].rstrip(" ,(:") + "…"
        rows.append([row["method"], *printed_texts(row), kind_text(row), row["backbone"], source])
    lines = [
        f"{last.method.title} on {last.setting} after step {last.step}/{last.steps - 1}"
        f"{'' if last.finished else ' (not finished)'}, mIoU in percent, protocol {protocol}",
        "",
        table_text(["result", *SCORES, "kind", "backbone", "source"], rows, SCORES, terminal=terminal),
    ]
    if not published:
        lines += ["", f"The ledger holds no published numbers for {last.method.title} on {last.setting}."]
    for warning in group_of(last).warnings:
        lines += ["", warning]
    return "\n".join(lines)


def step_line(record: StepRecord, protocol: str = "strict") -> str:
    """Return one line on a finished step: scores in percent, seconds it took, training images a second."""
    scores = score_record(record, protocol)
    numbers = "  ".join(f"{name} {number_text(getattr(scores, name), 1)}" for name in SCORES)
    speed = record.timing.images_per_second
    pace = f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"
    cost = f"({record.timing.wall_seconds:.1f} s, {pace} images/s)"
    return f"step {record.step}/{record.steps - 1}  {numbers}  {cost}"


def render_store(
    store: Store, form: str, protocol: str = "strict", selection: Selection | None = None, *,
    options: TableOptions | None = None, each: bool = False, marked: bool = False,
) -> str:  # fmt: skip
    """Return the selected finished runs of a store in one of ``FORMATS``, one row for all seeds.

    ``options``: which columns, decimals and published numbers the formats for people show (JSON and CSV hold all,
    unrounded); ``each``: one row per run instead; ``marked``: the terminal shows the best bold, the second underlined.
    Raises UsageError on an unknown format or protocol, or if nothing is selected; StoreError on a broken file.
    """
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}.", hint=nearest(form, FORMATS))
    runs = load_runs(store, protocol, selection)
    if form in DATA_FORMATS:
        of_cell = cell_data if form == "json" else cell_csv_row
        rows = [run_data(run) for run in latest(runs)] if each else [of_cell(cell) for cell in cells(runs)]
        return json.dumps(rows, allow_nan=False) if form == "json" else write_csv(rows)
    if not runs:
        text = nothing_finished(store)
        # Each as its format allows: a comment of LaTeX, which ends with its line, and a whole page of HTML.
        empty = {"latex": f"% {' '.join(text.split())}", "html": f"<!doctype html>\n<p>{html.escape(text)}</p>"}
        return empty.get(form, text)
    options = options or TableOptions()
    made = run_sections(latest(runs), protocol, options) if each else sections(cells(runs), protocol, options)
    return render_sections(made, form, marked)


def render_sections(made: Sequence[Section], form: str, marked: bool = False) -> str:
    """Return sections in one of the formats for people; ``marked`` as ``render_store`` takes it."""
    if form == "terminal":
        return render_terminal(made, marked)
    return {"markdown": render_markdown, "latex": render_latex, "html": render_html}[form](made)


def choose_format(form: str | None, output: Path | None, as_json: bool = False, terminal: bool = False) -> str:
    """Return the format asked for by name, by ``--json`` or by the ending of the output file, else the usual one.

    That is the terminal's where the output goes to one (``terminal``), and Markdown in a pipe. Raises UsageError if
    these disagree, on an unknown name, and on an ending that stands for no format.
    """
    if form is not None and form not in FORMATS:
        raise UsageError(f"unknown format {form!r}.", hint=nearest(form, FORMATS))
    if as_json and form not in (None, "json"):
        raise UsageError(f"--json and --format {form} do not go together.", hint="Leave one of them out.")
    if form is not None or as_json or output is None:
        return form or ("json" if as_json else "terminal" if terminal and output is None else "markdown")
    if output.suffix.lower() not in _ENDINGS:
        known = ", ".join(_ENDINGS)
        raise UsageError(f"the ending of {output} tells no format.", hint=f"Give --format, or one of {known}.")
    return _ENDINGS[output.suffix.lower()]


def write_text(path: Path, text: str) -> None:
    """Write a text to a file, whole or not at all, ending in a line feed. Raises StoreError."""
    write_atomic(path, (text if text.endswith("\n") or not text else text + "\n").encode())
