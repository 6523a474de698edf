"""The confusion matrix after the last step, with background shift marked: old classes predicted as background."""

from __future__ import annotations

import math
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from cispbench.reports.plots.heat_map import BLANK, Floats, draw_grid
from cispbench.reports.plots.page import COLUMN, FULL, Page, new_page
from cispbench.reports.plots.subject import ORANGE, VERMILION, Subject
from cispbench.reports.plots.wording import shorten, thinned
from cispbench.reports.tables.cells import Cell
from cispbench.results.scan import scan_record

_TICKS = (0, 1, 5, 10, 25, 50, 100)
_SMALL = 40  # classes; more of them take both columns of a paper


@dataclass(frozen=True)
class Shift:
    """As what the pixels of background, old and new classes are predicted, in percent; NaN where there are none.

    ``old_to_background``, ``old_to_new``, ``new_to_background``, ``new_to_old``: mean over the classes of the share of
    a class's pixels; ``background_to_new``: share of the background's pixels.
    """

    old_to_background: float
    old_to_new: float
    new_to_background: float
    new_to_old: float
    background_to_new: float


def row_shares(counts: NDArray[np.int64]) -> Floats:
    """Return the share of each row's pixels by prediction in percent, (C, C); NaN for a class without pixels."""
    totals = counts.sum(axis=1, keepdims=True).astype(np.float64)
    shares: Floats = np.divide(100.0 * counts, totals, out=np.full(counts.shape, math.nan), where=totals > 0)
    return shares


def background_shift(counts: NDArray[np.int64], first: int) -> Shift:
    """Return the shift of a confusion matrix, whose classes from index ``first`` on are new; index 0 is background.

    >>> counts = np.array([[90, 0, 10], [40, 50, 10], [0, 5, 5]])
    >>> shift = background_shift(counts, first=2)
    >>> shift.old_to_background, shift.background_to_new, shift.new_to_old
    (40.0, 10.0, 50.0)
    """
    shares = row_shares(counts)
    old, new = slice(1, first), slice(first, None)
    return Shift(
        old_to_background=_mean(shares[old, 0]),
        old_to_new=_mean(shares[old, new].sum(axis=1)),
        new_to_background=_mean(shares[new, 0]),
        new_to_old=_mean(shares[new, old].sum(axis=1)),
        background_to_new=float(shares[0, new].sum()),
    )


def draw_confusion(subject: Subject, cell: Cell, label: str) -> Page:
    """Draw the matrix of a cell after the last step, pixels of its seeds added up; rows are ground truth."""
    counts = np.sum([scan_record(run.path).counts for run in cell.runs], axis=0)
    first, count = subject.setting.num_classes(0), len(counts)
    shares = row_shares(counts)
    scored = not all(math.isnan(run.scores.background) for run in cell.runs)
    if not scored:
        shares[0] = math.nan
    blank = np.isnan(shares).all(axis=1)
    words = subject.words(f"Confusion after the last step: {label}", *_caption(counts, first, scored))
    width = COLUMN if count <= _SMALL else FULL
    legend = [Patch(fill=False, edgecolor=VERMILION, linewidth=1.2, label="old class to background")]
    if scored:
        legend.append(Patch(fill=False, edgecolor=ORANGE, linewidth=1.2, label="background to new class"))
    if blank.any():
        legend.append(Patch(facecolor=BLANK, label="no ground truth that is scored"))
    page = new_page(width, width * 0.9, words, legend)
    axes = page.figure.add_subplot()
    norm = PowerNorm(0.5, 0, 100)
    drawn = draw_grid(axes, shares, matplotlib.colormaps["Blues"], norm)
    for row in np.flatnonzero(blank):
        axes.fill_between([0, count], row, row + 1, color=BLANK, linewidth=0)
    letters = 5.5  # points
    shown = thinned(subject.names, width * 0.75 / count, letters)
    places, names = [place + 0.5 for place, _ in shown], [shorten(name, 0.75, letters) for _, name in shown]
    axes.set_xticks(places, names, rotation=90, fontsize=letters)
    axes.set_yticks(places, names, fontsize=letters)
    axes.set(xlabel="prediction", ylabel="ground truth")
    for step in subject.setting.steps[:-1]:
        edge = subject.setting.num_classes(step.index)
        axes.axhline(edge, color="#888888", linewidth=0.5)
        axes.axvline(edge, color="#888888", linewidth=0.5)
    _frame(axes, (0, 1, 1, first - 1), VERMILION)
    if scored:
        _frame(axes, (first, 0, count - first, 1), ORANGE)
    share, aspect = (0.04, 30) if count <= _SMALL else (0.02, 60)
    bar = page.figure.colorbar(drawn, ax=axes, location="right", pad=0.02, ticks=_TICKS, fraction=share, aspect=aspect)
    bar.set_label("share of the row's pixels (%)", labelpad=2)
    bar.outline.set_visible(False)
    return page


def _frame(axes: Axes, box: tuple[int, int, int, int], colour: str) -> None:
    """Frame a part of the matrix, by its first column and row and how many of each; the line lies around it."""
    column, row, wide, high = box
    edge = 0.0 if len(axes.get_yticks()) <= _SMALL else 0.25
    place, size = (column - edge, row - edge), (wide + 2 * edge, high + 2 * edge)
    line = Rectangle(place, *size, fill=False, edgecolor=colour, linewidth=1.0, zorder=5, clip_on=False)
    axes.add_patch(line)


def _caption(counts: NDArray[np.int64], first: int, scored: bool) -> list[str]:
    shift = background_shift(counts, first)
    framed = (
        f"Background shift: of an old class's pixels {_percent(shift.old_to_background)} are predicted as background"
    )
    if scored:
        framed += f", of the background's {_percent(shift.background_to_new)} as a new class"
    others = (
        f"Old to new {_percent(shift.old_to_new)}, new to background {_percent(shift.new_to_background)}, new to old "
        f"{_percent(shift.new_to_old)}; means over classes. Grey lines: between steps."
    )
    unscored = "The protocol does not score the background's row." if not scored else ""
    return [f"{framed}.", others, unscored]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f} %"


def _mean(values: Floats) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else math.nan
