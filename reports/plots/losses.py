"""The loss while a method trains: its terms over the iterations of all steps, as the records hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from cispbench.reports.plots.page import COLUMN, GREY, Page, new_page
from cispbench.reports.plots.subject import Style, Subject, styles
from cispbench.reports.tables.cells import Cell
from cispbench.results.record import StepRecord
from cispbench.results.store import read_run

_MOST_NUMBERS = 11  # of steps along the upper edge
_SUM = Style("black", "", "-")


def draw_losses(subject: Subject, cell: Cell, label: str) -> Page:
    """Draw every term of the loss, weighted, and their sum: one line a seed, the steps behind each other."""
    runs = [read_run(run.path.parent) for run in cell.runs]
    terms = list(dict.fromkeys(term for records in runs for record in records for term in record.losses.terms))
    looks = styles(terms)
    several = any(len(record.losses.terms) > 1 for records in runs for record in records)
    entries = [_sample(looks[term], term) for term in terms] + ([_sample(_SUM, "sum")] if several else [])
    words = subject.words(
        f"Loss in training: {label}",
        "" if terms else "The records hold no loss.",
        "Grey lines: between steps, numbered above." if len(runs[0]) > 1 else "",
        f"One line a seed, of {len(runs)}." if len(runs) > 1 else "",
        scored=False,
    )
    page = new_page(COLUMN, 2.1, words, entries)
    axes = page.figure.add_subplot()
    for records in runs:
        for start, record in zip(_starts(records), records, strict=False):
            at = [start + iteration for iteration in record.losses.iterations]
            if several:  # first, so that the only term of a step lies on the sum
                _line(axes, at, [math.fsum(values) for values in zip(*record.losses.terms.values(), strict=True)], _SUM)
            for term, values in record.losses.terms.items():
                _line(axes, at, values, looks[term])
    lowest = min((float(np.min(line.get_ydata())) for line in axes.lines), default=0.0)
    if lowest > 0:
        axes.set_yscale("log")
        # matplotlib writes powers of ten as formulas, which ``page`` leaves as they are.
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    _number_steps(axes, max(runs, key=len))
    axes.set(xlabel="iteration, over all steps", ylabel="loss term, weighted")
    return page


def _starts(records: Sequence[StepRecord]) -> list[int]:
    """Return the number of iterations before each recorded step, and after the last one."""
    starts = [0]
    for record in records:
        starts.append(starts[-1] + record.iterations)
    return starts


def _number_steps(axes: Axes, records: Sequence[StepRecord]) -> None:
    starts = _starts(records)
    axes.set_xlim(0, max(1, starts[-1]))
    for start in starts[1:-1]:
        axes.axvline(start, color="#cccccc", linewidth=0.5, zorder=0)
    if len(records) > 1:
        every = -(-len(records) // _MOST_NUMBERS)
        above = axes.secondary_xaxis("top")
        shown = list(zip(records, starts, starts[1:], strict=False))[::every]
        above.set_xticks(
            [(start + end) / 2 for _, start, end in shown], [str(record.step) for record, *_ in shown], color=GREY
        )
        above.tick_params(length=0, pad=1)
        above.spines[:].set_visible(False)


def _line(axes: Axes, at: Sequence[int], values: Sequence[float], style: Style) -> None:
    mark = "." if len(at) == 1 else ""  # a line of one point would not be seen
    axes.plot(at, values, color=style.colour, linestyle=style.dash, marker=mark, linewidth=0.7)


def _sample(style: Style, label: str) -> Line2D:
    return Line2D([], [], color=style.colour, linestyle=style.dash, label=label)
