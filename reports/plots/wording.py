"""Words on pictures: measured, wrapped, cut to fit, and made into names of files; none of them is trusted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

from cispbench.reports.tables.terminal import printable

_MEASURED_AT = 300  # dots an inch
_LONGEST = 60  # characters of a part of a file's name


def clean(text: str) -> str:
    """Return a text as one line, with what no reader could see (control characters) spelt out."""
    return printable(" ".join(text.split()))


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Return the width in inches of a line of text in letters of ``size`` points."""
    agg: Any = RendererAgg  # which has no types
    renderer = agg(1, 1, _MEASURED_AT)
    width, _, _ = renderer.get_text_width_height_descent(text, _font(size, bold), False)
    return float(width) / _MEASURED_AT


def wrap(text: str, room: float, size: float, bold: bool = False) -> list[str]:
    """Return a text as lines that are at most ``room`` inches wide, broken within words where it must be."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size, bold) <= room:
            lines[-1] = joined
            continue
        lines.append(word)
        while text_width(lines[-1], size, bold) > room and len(lines[-1]) > 1:
            kept = _fitting(lines[-1], room, size, bold)
            lines[-1:] = [lines[-1][:kept], lines[-1][kept:]]
    return lines


def shorten(text: str, room: float, size: float) -> str:
    """Return a text as one line that is at most ``room`` inches wide, its end replaced by an ellipsis if need be."""
    line = clean(text)
    if text_width(line, size) <= room:
        return line
    return line[: _fitting(line, room - text_width("…", size), size, False)].rstrip() + "…"


def thinned(names: Sequence[str], room: float, size: float) -> list[tuple[int, str]]:
    """Return the places and texts of those names that can stand ``room`` inches apart without touching.

    All of them where there is room for letters of ``size`` points, else the first of every so many.
    """
    every = max(1, -int(-size * 1.15 / 72 // room))
    return [(place, name) for place, name in enumerate(names) if place % every == 0]


def file_part(text: str) -> str:
    """Return a text as a part of a file's name: no separator, nothing that hides; other texts give other names.

    >>> file_part("plop"), file_part("../a b")
    ('plop', '_.._a_b-2c2c79')
    """
    safe = re.sub(r"[^A-Za-z0-9._+-]", "_", text)[:_LONGEST]
    safe = f"_{safe}" if safe.startswith((".", "-")) or not safe else safe
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"


def _fitting(text: str, room: float, size: float, bold: bool) -> int:
    """Return how many letters of a text fit into ``room`` inches, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text_width(text[:middle], size, bold) <= room else (low, middle - 1)
    return low


@lru_cache(maxsize=32)
def _font(size: float, bold: bool) -> FontProperties:
    return FontProperties(family=["DejaVu Sans"], size=size, weight="bold" if bold else "normal")
