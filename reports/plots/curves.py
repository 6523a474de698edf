"""mIoU after each step: one curve per method, the mean over seeds with a band of the standard deviation."""

from __future__ import annotations

import math

from matplotlib.axes import Axes

from cispbench.reports.plots.page import COLUMN, Page, new_page
from cispbench.reports.plots.subject import Style, Subject, common_steps, scores_after
from cispbench.reports.tables.cells import Cell, spread

_MOST_TICKS = 11


def draw_curves(subject: Subject) -> Page:
    """Draw the mIoU ``all`` after each recorded step; joint training, which has no steps, is a horizontal line."""
    entries = [subject.styles[label].sample(label, line=True) for label in subject.labels]
    several = any(len(cell.runs) > 1 for cell in subject.cells)
    band = "Lines: mean over seeds; bands: one standard deviation to either side." if several else ""
    level = "Dotted: joint training, tested after its only step." if any(cell.joint for cell in subject.cells) else ""
    page = new_page(COLUMN, 2.1, subject.words("mIoU after each step", band, level), entries)
    axes = page.figure.add_subplot()
    for cell, label in zip(subject.cells, subject.labels, strict=True):
        style = subject.styles[label]
        if cell.joint:
            mean, last = cell.numbers["all"].mean, subject.setting.last_step
            axes.axhline(mean, color=style.colour, linestyle=style.dash, linewidth=0.9)
            axes.plot([last], [mean], color=style.colour, marker=style.marker, clip_on=False, zorder=3)
        else:
            _curve(axes, cell, style)
    setting = subject.setting
    ticks = range(0, len(setting.steps), -(-len(setting.steps) // _MOST_TICKS))
    axes.set_xticks(list(ticks), [f"{step}\n{len(setting.classes_seen(step))}" for step in ticks])
    axes.set_xlim(-0.03 * max(1, setting.last_step), 1.03 * max(1, setting.last_step))
    axes.set_xlabel("step, and the classes known after it")
    axes.set_ylabel("mIoU of all classes so far (%)")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    return page


def _curve(axes: Axes, cell: Cell, style: Style) -> None:
    steps = common_steps(cell)
    found = [spread([scores.all for scores in scores_after(cell, step)]) for step in steps]
    means = [entry.mean for entry in found]
    axes.plot(steps, means, color=style.colour, marker=style.marker, linestyle=style.dash, clip_on=False, zorder=3)
    if not any(math.isnan(entry.std) for entry in found):
        low, high = ([entry.mean + sign * entry.std for entry in found] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=style.colour, alpha=0.2, linewidth=0)
