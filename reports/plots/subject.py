"""What a picture shows: the runs of one setting that may stand together, the name of each and its look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal, NamedTuple

from matplotlib.lines import Line2D

from cispbench.reports.plots.page import Words
from cispbench.reports.tables.cells import Cell
from cispbench.reports.tables.runs import Group
from cispbench.results.scores import Scores
from cispbench.splits.classes import class_names
from cispbench.splits.settings import Setting, parse_setting

# The colours of Okabe and Ito, which colour-blind readers can distinguish; markers and dashes do it without colours.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")


class Style(NamedTuple):
    """How the runs of one label look; upper bounds are black."""

    colour: str
    marker: str
    dash: Literal["-", "--", "-.", ":"]

    def sample(self, label: str, line: bool) -> Line2D:
        """Return what shows it in a legend: its marker, on a line or alone."""
        dash = self.dash if line else "none"
        return Line2D([], [], color=self.colour, marker=self.marker, linestyle=dash, label=label)


@dataclass(frozen=True)
class Subject:
    """A setting on one kind of data, under one profile and protocol; ``labels`` in the order of ``cells``.

    ``styles`` by label: the same in every picture of the group.
    """

    group: Group
    setting: Setting
    protocol: str
    cells: tuple[Cell, ...]
    labels: tuple[str, ...]
    styles: dict[str, Style]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes in order of learning, background first."""
        known = class_names(self.setting.dataset)
        return tuple(known[number] for number in self.setting.learning_order)

    def words(self, what: str, *caption: str, scored: bool = True) -> Words:
        """Return the words of a picture, with its data and profile, and the warning where numbers do not compare.

        ``scored``: whether the numbers depend on the protocol.
        """
        kind, profile, dataset = self.group
        models = {cell.key.model for cell in self.cells}
        parts = [dataset, f"{kind} data", f"profile {profile}", f"protocol {self.protocol}" if scored else ""]
        subtitle = ", ".join(part for part in (*parts, models.pop() if len(models) == 1 else "") if part)
        return Words(f"{what}, {self.setting.name}", subtitle, [*filter(None, caption), *self.group.warnings])


def subjects(group: Group, cells: Sequence[Cell], protocol: str) -> list[Subject]:
    """Return the subjects of a group's cells, one a setting, in the order of the cells."""
    labels = _labels(cells)
    looks = styles(sorted({labels[id(cell)] for cell in cells if not cell.joint}))
    looks |= dict.fromkeys((labels[id(cell)] for cell in cells if cell.joint), Style("black", "*", ":"))
    found = []
    for name in dict.fromkeys(cell.setting for cell in cells):
        members = tuple(cell for cell in cells if cell.setting == name)
        own = tuple(labels[id(cell)] for cell in members)
        found.append(Subject(group, parse_setting(name), protocol, members, own, looks))
    return found


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """Return a look for each label: 42 differ in colour or marker, and more of them in their dashes."""
    dashes = (dash for dash in cycle(_DASHES) for _ in _COLOURS)  # the next one once all colours are used
    looks = zip(labels, cycle(_COLOURS), cycle(_MARKERS), dashes, strict=False)
    return {label: Style(colour, marker, dash) for label, colour, marker, dash in looks}


def common_steps(cell: Cell) -> list[int]:
    """Return the steps that every run of a cell has recorded, in their order."""
    recorded = [{step.step for step in run.steps} for run in cell.runs]
    return sorted(set.intersection(*recorded))


def scores_after(cell: Cell, step: int) -> list[Scores]:
    """Return the scores of every run of a cell after a recorded step, by seed."""
    return [next(found.scores for found in run.steps if found.step == step) for run in cell.runs]


def _labels(cells: Sequence[Cell]) -> dict[int, str]:
    """Return, by the identity of a cell, its method, with the model where the group has several, and its remark."""
    several = len({cell.key.model for cell in cells}) > 1
    labels = {}
    for cell in cells:
        parts = [cell.key.model if several else "", cell.key.remark()]
        words = ", ".join(filter(None, parts))
        labels[id(cell)] = f"{cell.key.method} ({words})" if words else cell.key.method
    return labels
