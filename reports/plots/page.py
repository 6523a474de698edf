"""The page of a picture: heading, body, legend and caption below each other, and the same bytes every time.

The body's axes are laid out between heading and legend, so that neither ever covers data. A text is shown as it is:
no ``$`` starts a formula, whatever a method is called.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from cispbench.reports.plots.wording import clean, shorten, text_width, wrap
from cispbench.splits.errors import UsageError, nearest

COLUMN, FULL = 3.4, 7.0  # inches: one column of a paper with two, and both of them
FORMATS = ("svg", "png")
DPI = 300
GREY = "#555555"

_SETTINGS: dict[str, Any] = {
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
_FEW = 4  # entries that may stand below each other, however long they are


class Entry(NamedTuple):
    """A line of the legend: an artist that looks like what it explains, and its words."""

    artist: Artist
    label: str


@dataclass(frozen=True)
class Words:
    """What stands around a picture: its title, a line of what it is of, and paragraphs below it."""

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
    usual: dict[Any, Any] = {
        name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")
    }
    with matplotlib.rc_context(usual | _SETTINGS), warnings.catch_warnings():
        # A name may hold letters that the font lacks; it is drawn with a box for each.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def new_page(width: float, height: float, words: Words, legend: Sequence[Entry] = (), gap: float = 0.02) -> Page:
    """Return a page ``width`` inches wide with room of ``height`` inches for axes, all other parts in place.

    ``gap``: between axes side by side, as a share of their width.
    """
    figure = Figure()
    FigureCanvasAgg(figure)
    room = width - 2 * _PAD
    title, subtitle = wrap(clean(words.title), room, _TITLE, bold=True), wrap(clean(words.subtitle), room, _SMALL)
    caption = [line for part in words.caption for line in wrap(clean(part), room, _SMALL)]
    columns = _columns(legend, room)
    head = _lines(title, _TITLE) + _lines(subtitle, _SMALL) + 2 * _PAD
    rows = -(-len(legend) // columns)
    explained = rows * _LEGEND * 1.5 / 72 + (2 * _PAD if rows else 0)
    foot = _lines(caption, _SMALL) + _PAD
    total = head + height + explained + foot
    figure.set_size_inches(width, total)
    top = total - _PAD
    for lines, size, weight, colour in ((title, _TITLE, "bold", "black"), (subtitle, _SMALL, "normal", GREY)):
        _write(figure, lines, top, size, weight, colour)
        top -= _lines(lines, size)
    _write(figure, caption, foot, _SMALL, "normal", GREY)
    if legend:
        _explain(figure, legend, columns, (foot + explained / 2) / total)
    bottom = (foot + explained) / total
    body = _PAD / width, bottom, 1 - 2 * _PAD / width, height / total
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=body, w_pad=0.02, h_pad=0.02, wspace=gap))
    return Page(figure, words)


def render(page: Page, form: str) -> bytes:
    """Return a page as SVG or PNG: the same bytes for the same records. Raises UsageError on another format."""
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}.", hint=nearest(form, FORMATS))
    figure, words = page
    _settle(figure)
    title, told = clean(words.title), " ".join(clean(part) for part in (words.subtitle, *words.caption))
    # No date, no version: they would differ where the picture does not.
    left_out = {"svg": ("Date", "Creator"), "png": ("Software",)}[form]
    metadata = {"Title": title, "Description": told, **dict.fromkeys(left_out)}
    content = io.BytesIO()
    figure.savefig(content, format=form, dpi=DPI, metadata=metadata)
    return content.getvalue()


def _settle(figure: Figure) -> None:
    """Lay the axes out, once, and round where they lie: the solver's last digits change with the memory it gets."""
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(value, 6) for value in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))


def _lines(lines: Sequence[str], size: float) -> float:
    return len(lines) * size * _LEADING / 72


def _write(figure: Figure, lines: Sequence[str], top: float, size: float, weight: str, colour: str) -> None:
    """Write lines below each other, the upper edge of the first one ``top`` inches above the page's lower edge."""
    width, height = figure.get_size_inches()
    for place, line in enumerate(lines):
        y = (top - place * size * _LEADING / 72) / height
        figure.text(_PAD / width, y, line, fontsize=size, fontweight=weight, color=colour, va="top", ha="left")


def _columns(legend: Sequence[Entry], room: float) -> int:
    """Return how many columns of a legend fit beside each other."""
    beside = (_HANDLE + 0.6 + _GAP) * _LEGEND / 72
    widths = [text_width(label, _LEGEND) + beside for label in _labels(legend, room)]
    for columns in range(len(legend), 1, -1):
        rows = -(-len(legend) // columns)
        if sum(max(widths[start : start + rows]) for start in range(0, len(legend), rows)) <= room:
            return columns
    return 1


def _labels(legend: Sequence[Entry], room: float) -> list[str]:
    """Return the words of a legend, cut to what leaves room for two columns where there are many."""
    share = room if len(legend) <= _FEW else room / 2
    return [shorten(entry.label, share - (_HANDLE + 0.6 + _GAP) * _LEGEND / 72, _LEGEND) for entry in legend]


def _explain(figure: Figure, legend: Sequence[Entry], columns: int, middle: float) -> None:
    room = figure.get_size_inches()[0] - 2 * _PAD
    # The words are set afterwards: matplotlib leaves out entries whose label starts with an underscore.
    made = figure.legend(
        [entry.artist for entry in legend], ["x"] * len(legend), loc="center", bbox_to_anchor=(0.5, middle),
        ncols=columns, frameon=False, fontsize=_LEGEND, handlelength=_HANDLE, columnspacing=_GAP, handletextpad=0.6,
        borderpad=0, labelspacing=0.35, borderaxespad=0,
    )  # fmt: skip
    made.set_in_layout(False)
    for text, label in zip(made.get_texts(), _labels(legend, room), strict=True):
        text.set_text(label)
