"""The page of a picture: heading, body, legend and caption below each other, and the same bytes every time.

The axes are laid out between heading and legend, so that neither ever covers data. A text is shown as it is: no ``$``
starts a formula, whatever a method is called.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from cispbench.reports.plots.wording import shorten, text_width, wrap
from cispbench.reports.tables.layout import one_line

COLUMN, FULL = 3.4, 7.0  # inches: one column of a paper with two, and both of them
FORMATS = ("svg", "png")
DPI = 300
GREY = "#555555"

_SETTINGS: dict[str, Any] = {  # beside matplotlib's defaults; svg.hashsalt: the same ids in every SVG
    "text.parse_math": False, "svg.hashsalt": "cispbench", "svg.fonttype": "path", "font.family": ["DejaVu Sans"],
    "font.size": 7, "axes.labelsize": 7, "axes.titlesize": 7, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5,
    "ytick.major.size": 2.5, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.2,
    "lines.markersize": 4, "hatch.linewidth": 0.5, "figure.dpi": 100,
}  # fmt: skip
_TITLE, _SMALL, _LEGEND = 8.0, 6.2, 6.5  # points
_LEADING = 1.3
_PAD = 0.05  # inches, around and between the parts
_HANDLE, _GAP = 2.6, 1.4  # a legend's line and what is between its columns, in sizes of its letters
_BESIDE = (_HANDLE + 0.6 + _GAP) * _LEGEND / 72  # inches of a legend's entry beside its words


@dataclass(frozen=True)
class Words:
    """The words around a picture: its title, a line about what it shows, and paragraphs below it."""

    title: str
    subtitle: str
    caption: Sequence[str] = ()


class Page(NamedTuple):
    """A figure with the words that stand on it, ready to be rendered."""

    figure: Figure
    words: Words


@contextmanager
def drawing() -> Iterator[None]:
    """Draw under our own settings, whatever a matplotlibrc says; figures are made and rendered within."""
    # Not matplotlib.style.context(["default", ...]): importing it would make a folder in the user's home.
    usual: dict[Any, Any] = {
        name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")
    }
    with matplotlib.rc_context(usual | _SETTINGS), warnings.catch_warnings():
        # A name may hold letters that the font lacks; it is drawn with a box for each.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def new_page(width: float, height: float, words: Words, legend: Sequence[Artist] = (), gap: float = 0.02) -> Page:
    """Return a page ``width`` inches wide with room of ``height`` inches for axes, all other parts in place.

    ``legend``: artists that look like what their labels explain; ``gap``: between axes side by side, as a share of
    their width. matplotlib's own titles (``suptitle``, ``supxlabel``, a legend ``outside``) would take their room from
    the axes, and lie on each other at the lower edge.
    """
    figure = Figure()
    FigureCanvasAgg(figure)
    room = width - 2 * _PAD
    title, subtitle = wrap(words.title, room, _TITLE, bold=True), wrap(words.subtitle, room, _SMALL)
    caption = [line for part in words.caption for line in wrap(part, room, _SMALL)]
    labels = [shorten(str(artist.get_label()), room - _BESIDE, _LEGEND) for artist in legend]
    columns = _columns(labels, room)
    rows = -(-len(labels) // columns)
    # The heights of the parts, in inches.
    head = _height(title, _TITLE) + _height(subtitle, _SMALL) + 2 * _PAD
    explained = rows * _LEGEND * 1.5 / 72 + (2 * _PAD if rows else 0)
    foot = _height(caption, _SMALL) + _PAD
    total = head + height + explained + foot
    figure.set_size_inches(width, total)
    _write(figure, title, total - _PAD, _TITLE, fontweight="bold")
    _write(figure, subtitle, total - _PAD - _height(title, _TITLE), _SMALL, color=GREY)
    _write(figure, caption, foot, _SMALL, color=GREY)
    if legend:
        _explain(figure, legend, labels, columns, (foot + explained / 2) / total)
    body = _PAD / width, (foot + explained) / total, 1 - 2 * _PAD / width, height / total
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=body, w_pad=0.02, h_pad=0.02, wspace=gap))
    return Page(figure, words)


def render(page: Page, form: str) -> bytes:
    """Return a page in one of ``FORMATS``: the same bytes for the same records."""
    figure, words = page
    _fix_layout(figure)
    # No date, no version: they would differ where the picture does not.
    left_out = {"svg": ("Date", "Creator"), "png": ("Software",)}[form]
    description = " ".join(one_line(part) for part in (words.subtitle, *words.caption))
    metadata = {"Title": one_line(words.title), "Description": description, **dict.fromkeys(left_out)}
    content = io.BytesIO()
    figure.savefig(content, format=form, dpi=DPI, metadata=metadata)
    return content.getvalue()


def _fix_layout(figure: Figure) -> None:
    """Lay the axes out once, and round their positions.

    The layout's solver is not exact: its last digits depend on where its objects lie in memory, so that two processes
    would write different bytes.
    """
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(value, 6) for value in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))


def _height(lines: Sequence[str], size: float) -> float:
    return len(lines) * size * _LEADING / 72


def _write(figure: Figure, lines: Sequence[str], top: float, size: float, **look: Any) -> None:
    """Write lines below each other, the upper edge of the first one ``top`` inches above the page's lower edge."""
    width, height = figure.get_size_inches()
    for index, line in enumerate(lines):
        y = (top - _height(lines[:index], size)) / height
        figure.text(_PAD / width, y, line, fontsize=size, va="top", ha="left", **look)


def _columns(labels: Sequence[str], room: float) -> int:
    """Return how many columns of a legend fit beside each other: matplotlib has to be told.

    It shares the entries among the columns by ``array_split``: the first columns hold one more than the others.
    """
    widths = np.array([text_width(label, _LEGEND) + _BESIDE for label in labels])
    for columns in range(len(labels), 1, -1):
        if sum(float(part.max()) for part in np.array_split(widths, columns)) <= room:
            return columns
    return 1


def _explain(figure: Figure, legend: Sequence[Artist], labels: Sequence[str], columns: int, middle: float) -> None:
    # The words are set afterwards: matplotlib leaves out entries whose label starts with an underscore.
    made = figure.legend(
        legend, ["x"] * len(legend), loc="center", bbox_to_anchor=(0.5, middle), ncols=columns, frameon=False,
        fontsize=_LEGEND, handlelength=_HANDLE, columnspacing=_GAP, handletextpad=0.6, borderpad=0, labelspacing=0.35,
        borderaxespad=0,
    )  # fmt: skip
    made.set_in_layout(False)
    for text, label in zip(made.get_texts(), labels, strict=True):
        text.set_text(label)
