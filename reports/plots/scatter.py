"""Old against new classes: what a method keeps and what it learns, with lines of equal harmonic mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cispbench.reports.plots.page import COLUMN, GREY, Page, new_page
from cispbench.reports.plots.subject import Subject
from cispbench.results.scores import harmonic_mean

Limits = tuple[float, float]
_MARGIN = 4.0  # points of mIoU around what is measured
_LEAST = 20.0  # points that an axis spans


def draw_scatter(subject: Subject) -> Page:
    """Draw old against new mIoU after the last step: one filled mark per method, a hollow one per seed."""
    entries = [subject.styles[label].sample(label, line=False) for label in subject.labels]
    several = any(len(cell.runs) > 1 for cell in subject.cells)
    words = subject.words(
        "Old against new classes",
        "Grey lines: equal harmonic mean of both." + (" Filled: mean of seeds; hollow: each seed." if several else ""),
    )
    page = new_page(COLUMN, 2.7, words, entries)
    axes = page.figure.add_subplot()
    for cell, label in zip(subject.cells, subject.labels, strict=True):
        style = subject.styles[label]
        means = [cell.numbers[name].mean for name in ("old", "new")]
        axes.plot(*means, marker=style.marker, color=style.colour, markersize=5, markeredgecolor="white", zorder=3)
        if len(cell.runs) > 1:
            seeds = [[run.number(name) for run in cell.runs] for name in ("old", "new")]
            look: dict[str, Any] = {"marker": style.marker, "color": style.colour, "linestyle": "none"}
            axes.plot(*seeds, **look, markersize=4, markerfacecolor="none", markeredgewidth=0.6, zorder=4)
    points = [(run.number("old"), run.number("new")) for cell in subject.cells for run in cell.runs]
    known = [point for point in points if not any(map(math.isnan, point))]
    across, up = (limits([point[place] for point in known]) for place in (0, 1))
    axes.set(xlim=across, ylim=up, xlabel="mIoU of old classes (%)", ylabel="mIoU of new classes (%)")
    axes.set_xticks(_ticks(across))
    axes.set_yticks(_ticks(up))
    _harmonic_lines(axes, across, up)
    return page


def limits(values: Sequence[float]) -> Limits:
    """Return the range of an axis that holds all values with some room, within 0..100; all of it for no value.

    >>> limits([0.0, 3.0]), limits([60.0, 95.0])
    ((-4.0, 16.0), (56.0, 99.0))
    """
    if not values:
        return 0.0, 100.0
    low, high = min(values) - _MARGIN, max(values) + _MARGIN
    middle, half = (low + high) / 2, max(high - low, _LEAST) / 2
    low = min(max(-_MARGIN, middle - half), 100 + _MARGIN - 2 * half)
    return low, low + 2 * half


def _ticks(span: Limits) -> list[float]:
    places = MaxNLocator(7, steps=[1, 2, 5, 10], integer=True).tick_values(*span)
    return [float(place) for place in places if max(0.0, span[0]) <= place <= min(100.0, span[1])]


def _harmonic_lines(axes: Axes, across: Limits, up: Limits) -> None:
    """Draw lines of equal harmonic mean, each with its value where it leaves the axes: to the right, else at the top.

    ``contour`` would write the values into the lines, where marks may cover them.
    """
    lowest, highest = (harmonic_mean(max(0.0, x), max(0.0, y)) for x, y in zip(across, up, strict=True))
    between = next(step for step in (1, 2, 5, 10, 20) if (highest - lowest) / step <= 7)
    look: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False, "fontsize": 5.5, "color": GREY}
    for level in np.arange(between, highest, between):
        old = np.linspace(max(across[0], level / 2 + 0.01), across[1], 200)
        new = level * old / (2 * old - level)
        axes.plot(old, new, color="#cccccc", linewidth=0.6, zorder=1)
        right, top = (level * edge / (2 * edge - level) for edge in (across[1], up[1]))
        if up[0] <= right <= up[1]:
            end, ha, va = (across[1], right), "left", "center"
        elif across[0] <= top <= across[1]:
            end, ha, va = (top, up[1]), "center", "bottom"
        else:
            continue
        axes.annotate(f"{level:g}", end, (2, 1), ha=ha, va=va, **look)
