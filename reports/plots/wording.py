"""Words on pictures: measured, wrapped, cut to fit, and made into names of files; none of them is trusted.

matplotlib wraps a text at the edge of the figure alone, and never within a word; the standard ``textwrap`` counts
letters, whose widths differ by a factor of four. So the widths are measured here.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

from cispbench.reports.tables.layout import one_line

_MEASURED_AT = 300  # dots per inch
_LONGEST = 60  # characters of a part of a file's name


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Return the width in inches of a line of text in letters of ``size`` points."""
    agg: Any = RendererAgg  # which has no types
    width, _, _ = agg(1, 1, _MEASURED_AT).get_text_width_height_descent(text, _font(size, bold), False)
    return float(width) / _MEASURED_AT


def wrap(text: str, room: float, size: float, bold: bool = False) -> list[str]:
    """Return a text as printable lines at most ``room`` inches wide; a word that is wider is broken."""
    lines: list[str] = []
    for word in one_line(text).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size, bold) <= room:
            lines[-1] = joined
            continue
        while len(word) > (kept := _fitting(word, room, size, bold)):
            lines.append(word[:kept])
            word = word[kept:]
        lines.append(word)
    return lines


def shorten(text: str, room: float, size: float) -> str:
    """Return a text as one line that is at most ``room`` inches wide, its end replaced by an ellipsis if need be."""
    line = one_line(text)
    if text_width(line, size) <= room:
        return line
    return line[: _fitting(line, room - text_width("…", size), size)].rstrip() + "…"


def thinned(names: Sequence[str], room: float, size: float) -> list[tuple[int, str]]:
    """Return names for places ``room`` inches apart, with their positions: every nth, so that none touch."""
    every = max(1, -int(-size * 1.15 / 72 // room))
    return list(enumerate(names))[::every]


def file_part(text: str) -> str:
    """Return a text as a part of a file's name: no separator, no leading dot; different texts give different names.

    >>> file_part("plop"), file_part("../a b")
    ('plop', '_.._a_b-2c2c79')
    """
    safe = re.sub(r"[^A-Za-z0-9._+-]", "_", text)[:_LONGEST]
    safe = f"_{safe}" if safe.startswith((".", "-")) or not safe else safe
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"


def _fitting(text: str, room: float, size: float, bold: bool = False) -> int:
    """Return how many letters of a text fit into ``room`` inches, at least one."""
    counts = range(1, len(text) + 1)
    return max(1, bisect_right(counts, room, key=lambda count: text_width(text[:count], size, bold)))


@lru_cache(maxsize=32)
def _font(size: float, bold: bool) -> FontProperties:
    return FontProperties(family=["DejaVu Sans"], size=size, weight="bold" if bold else "normal")
