"""Markdown tables that read well as plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tabulate import tabulate


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a GitHub table whose cells show exactly the given texts."""
    escaped = [[escape(text) for text in row] for row in rows]
    return tabulate(escaped, [escape(text) for text in headers], tablefmt="github", disable_numparse=True)


def escape(text: str) -> str:
    """Return a text as one line that no table takes for two cells."""
    return " ".join(text.split()).replace("|", "\\|")


def number_text(value: float, digits: int) -> str:
    """Return a number, or a dash where there is none (nan)."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
