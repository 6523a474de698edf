"""IoU of every class after every step: what is forgotten, and when."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cispbench.reports.plots.page import COLUMN, FULL, Page, new_page
from cispbench.reports.plots.subject import VERMILION, Subject, common_steps, scores_after
from cispbench.reports.plots.wording import shorten
from cispbench.reports.tables.cells import Cell
from cispbench.reports.tables.numbers import signed

Floats = NDArray[np.float64]

BLANK = "#dddddd"  # of numbers that are not defined
_MOST_SHAPES = 4000  # cells; more of them are drawn as one image, which keeps an SVG small
_LONGEST_PART = 52  # classes below each other; more of them stand in parts side by side
_ROW = 0.118  # inches
_SHARE, _NAME_OF_STEP = 0.66, 0.13  # share of a part's width for its cells; inches for the number of a step
_WIDE = 3.0  # inches of a part with room for large cells
_NUMBERS = 8  # steps; cells of more are too narrow for a number
_NOTABLE = 10.0  # points that a class falls by to stand out


@dataclass(frozen=True)
class ClassRows:
    """IoU in percent, (classes, steps), mean over seeds: NaN before a class is learnt, or where it is undefined.

    Rows in order of learning; ``learnt``: the step that learns each; ``steps``: the recorded ones.
    """

    names: tuple[str, ...]
    learnt: tuple[int, ...]
    steps: tuple[int, ...]
    iou: Floats

    def known(self) -> NDArray[np.bool_]:
        """Return whether each class is learnt by each step, bool (classes, steps)."""
        return np.less_equal.outer(self.learnt, self.steps)

    def changes(self) -> list[float]:
        """Return each class's change of IoU from its first recorded step to the last one; NaN where it is undefined."""
        first = [next((i for i, step in enumerate(self.steps) if step >= at), -1) for at in self.learnt]
        last = len(self.steps) - 1
        return [float(row[last] - row[at]) if at < last else math.nan for row, at in zip(self.iou, first, strict=True)]


def class_rows(cell: Cell, subject: Subject) -> ClassRows:
    """Return the rows of a cell; the background is left out where the protocol does not score it."""
    steps = common_steps(cell)
    means = [
        [statistics.fmean(values) for values in zip(*(s.per_class for s in scores_after(cell, step)), strict=True)]
        for step in steps
    ]
    iou = np.array(means, dtype=np.float64).T
    learnt = (0, *(step.index for step in subject.setting.steps for _ in step.classes))
    first = 1 if np.isnan(iou[0]).all() else 0
    return ClassRows(subject.names[first:], learnt[first:], tuple(steps), iou[first:])


def draw_heat_map(subject: Subject, cell: Cell, label: str) -> Page:
    """Draw the IoU of every class after every step, with the change since it was learnt beside."""
    rows = class_rows(cell, subject)
    count = len(rows.names)
    parts = -(-count // _LONGEST_PART)
    longest = -(-count // parts)
    width = COLUMN if parts == 1 else FULL
    absent = bool((np.isnan(rows.iou) & rows.known()).any())
    seeds = f"seed {cell.runs[0].facts.seed}" if len(cell.runs) == 1 else f"mean over {len(cell.runs)} seeds"
    words = subject.words(
        f"IoU by class: {label}",
        f"In percent, {seeds}; classes in order of learning, lines between those of different steps, blank "
        f"before a class is learnt. Change: from the step that learnt the class to the last one.",
    )
    legend = [Patch(facecolor=BLANK, label="no ground truth")] if absent else []
    page = new_page(width, longest * _ROW + 0.75, words, legend)
    axes = page.figure.subplots(1, parts, squeeze=False)[0]
    norm = Normalize(0, 100)
    for place, part in enumerate(axes):
        shown = range(place * longest, min(count, (place + 1) * longest))
        drawn = _part(part, rows, shown, longest, norm, width / parts)
    bar = page.figure.colorbar(drawn, ax=list(axes), location="bottom", fraction=0.1, aspect=40, pad=0.02)
    bar.set_label("IoU (%)", labelpad=1)
    bar.outline.set_visible(False)
    return page


def draw_grid(axes: Axes, values: Floats, colours: Colormap, norm: Normalize) -> ScalarMappable:
    """Draw values (R, C): cell (r, c) fills c to c + 1 and r to r + 1, the first row at the top; NaN stays white."""
    rows, columns = values.shape
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    shown = np.ma.masked_invalid(values)
    if values.size <= _MOST_SHAPES:
        return axes.pcolormesh(shown, cmap=colours, norm=norm, linewidth=0)
    extent = (0, columns, rows, 0)
    return axes.imshow(shown, cmap=colours, norm=norm, interpolation="none", extent=extent, aspect="auto")


def _part(axes: Axes, rows: ClassRows, shown: range, longest: int, norm: Normalize, room: float) -> ScalarMappable:
    """Draw the classes of one part; all parts are equally high."""
    iou, steps = rows.iou[shown.start : shown.stop], len(rows.steps)
    drawn = draw_grid(axes, iou, matplotlib.colormaps["viridis"], norm)
    known = rows.known()[shown.start : shown.stop]
    beside = steps * (0.19 if room > _WIDE else 0.34)
    axes.set(xlim=(0, steps + beside), ylim=(longest, 0))
    size = 5.8
    names = [shorten(name, room * 0.33, size) for name in rows.names[shown.start : shown.stop]]
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=size)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    every = math.ceil(_NAME_OF_STEP * (steps + beside) / (_SHARE * room))
    ticks = [(place + 0.5, str(step)) for place, step in enumerate(rows.steps) if place % every == 0]
    axes.set_xticks(*zip(*ticks, (steps + 0.55 * beside, "change"), strict=True), fontsize=size)
    axes.set_xlabel("after step", labelpad=2, loc="left")
    changes = rows.changes()
    for row, place in enumerate(shown):
        _write_row(axes, row, iou[row], known[row], steps <= _NUMBERS)
        if not math.isnan(changes[place]):
            colour = VERMILION if changes[place] <= -_NOTABLE else "black"
            change = signed(changes[place], 0).replace("-", "\N{MINUS SIGN}")
            _write(axes, steps + 0.85 * beside, row, change, colour, "right")
        if place and rows.learnt[place] != rows.learnt[place - 1]:
            axes.axhline(row, color="black", linewidth=0.6)
    return drawn


def _write_row(axes: Axes, row: int, iou: Sequence[float], known: Sequence[bool], numbers: bool) -> None:
    for column, (value, learnt) in enumerate(zip(iou, known, strict=True)):
        if math.isnan(value):
            if learnt:
                axes.fill_between([column, column + 1], row, row + 1, color=BLANK, linewidth=0)
        elif numbers:
            colour = "white" if value < 50 else "black"
            _write(axes, column + 0.5, row, f"{value:.0f}", colour, "center")


def _write(axes: Axes, x: float, row: int, text: str, colour: str, side: Literal["center", "right"]) -> None:
    axes.text(x, row + 0.5, text, fontsize=5.4, color=colour, va="center_baseline", ha=side)
