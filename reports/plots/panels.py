"""Panels: images with their ground truth and a run's prediction after every step, below each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cispbench.reports.plots.page import COLUMN, FULL, GREY, Page, Words, new_page
from cispbench.reports.plots.wording import shorten, text_width
from cispbench.reports.tables.runs import Group
from cispbench.results.record import StepRecord
from cispbench.splits.classes import class_names, palette
from cispbench.splits.settings import VOID, Setting, parse_setting

Pixels = NDArray[np.uint8]

_CELL = 0.95  # inches that a picture of a row is wide, where there is room
_SIDE = 1.1  # that the words beside a row may take
_GAP = 0.05  # between pictures
_SMALL = 6.0  # points
_STRIPES = 24  # on the height of an image, where it is void


@dataclass(frozen=True)
class PanelRow:
    """An image, uint8 (H, W, 3), with its ground truth and a prediction for each step in class indices, uint8 (H, W).

    255 is void; ``note``: words below the name.
    """

    name: str
    image: Pixels
    truth: Pixels
    predictions: Sequence[Pixels]
    note: str = ""


def draw_panels(rows: Sequence[PanelRow], records: Sequence[StepRecord], *caption: str) -> Page:
    """Return a page with one row per image: image, ground truth, the prediction after each recorded step.

    ``records``: of the run, one for each prediction of a row. Colours are the data set's own; the legend holds the
    classes that are seen, in order of learning, with the step that learns each in brackets.
    """
    setting = parse_setting(records[-1].setting)
    titles = ["image", "ground truth", *(f"step {record.step}" for record in records)]
    if records[-1].joint:
        titles[-1] = "prediction"
    words = [[shorten(part, _SIDE, _SMALL) for part in (row.name, row.note) if part] for row in rows]
    side = max(text_width(part, _SMALL) for parts in words for part in parts) + 2 * _GAP
    width = min(FULL, max(COLUMN, side + _CELL * len(titles)))
    cell = (width - side) / len(titles)
    heights = [(cell - _GAP) * row.truth.shape[0] / row.truth.shape[1] for row in rows]
    legend = _legend(rows, setting, records[-1].joint)
    page = new_page(width, sum(heights) + _GAP * len(rows) + 0.2, _words(records[-1], caption), legend, gap=0.0)
    grid = page.figure.subplots(len(rows), len(titles), squeeze=False, height_ratios=heights)
    colours = _colours(setting)
    for row, line, parts in zip(rows, grid, words, strict=True):
        shown = [row.image, *(_painted(mask, colours) for mask in (row.truth, *row.predictions))]
        for axes, pixels in zip(line, shown, strict=True):
            axes.imshow(pixels, interpolation="none")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, linewidth=0.4, color=GREY)
        line[0].set_ylabel("\n".join(parts), fontsize=_SMALL, labelpad=3, rotation=0, ha="right", va="center")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, pad=2, fontsize=6.5)
    return page


def _words(last: StepRecord, caption: Sequence[str]) -> Words:
    title = f"Predictions{'' if last.joint else ' after each step'}: {last.method.title}, {last.setting}"
    subtitle = f"{last.dataset}, {last.data.kind} data, profile {last.profile}, {last.model.name}, seed {last.seed}"
    brackets = "" if last.joint else "In brackets: the step that learns a class."
    warnings = Group(last.data.kind, last.profile, last.dataset).warnings
    return Words(title, subtitle, [part for part in (brackets, *caption, *warnings) if part])


def _colours(setting: Setting) -> Pixels:
    """Return red, green, blue by class index, uint8 (256, 3); white for void."""
    known = palette(setting.dataset)
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(known)] = [known[number] for number in setting.learning_order]
    return colours


def _painted(mask: Pixels, colours: Pixels) -> Pixels:
    """Return a mask in colours, void in white with grey stripes."""
    painted: Pixels = colours[mask]
    rows, columns = np.indices(mask.shape)
    period = max(4, mask.shape[0] // _STRIPES)
    stripes = (rows + columns) % period < max(1, period // 4)
    painted[(mask == VOID) & stripes] = 0x99
    return painted


def _legend(rows: Sequence[PanelRow], setting: Setting, joint: bool) -> list[Patch]:
    found = {int(index) for row in rows for mask in (row.truth, *row.predictions) for index in np.unique(mask)}
    names, colours = class_names(setting.dataset), _colours(setting)
    learnt = (0, *(step.index for step in setting.steps for _ in step.classes))
    entries = []
    for index in sorted(found):
        if index == VOID:
            entries.append(Patch(facecolor="white", edgecolor=GREY, hatch="//////", linewidth=0.4, label="void"))
            continue
        name = names[setting.learning_order[index]]
        label = name if joint or index == 0 else f"{name} ({learnt[index]})"
        colour = tuple(channel / 255 for channel in colours[index].tolist())
        entries.append(Patch(facecolor=colour, edgecolor=GREY, linewidth=0.4, label=label))
    return entries
