"""Markdown tables that read well as plain text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from cispbench.reports.tables.layout import Section, Text
from cispbench.reports.tables.terminal import printable

# What Markdown would take for markup. Kept as it is, because it reads better: an underscore within a word, and brackets
# that make no link.
_MARKUP = re.compile(r"[\\|`*<]|~~|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|\[(?=[^\]]*\][(\[:])|&(?=[A-Za-z0-9#]+;)")
_RANKED = {0: "{}", 1: "**{}**", 2: "<ins>{}</ins>"}


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a GitHub table whose cells show exactly the given texts."""
    return _table([escape(text) for text in headers], [[escape(text) for text in row] for row in rows])


def escape(text: str) -> str:
    """Return a text as one line that no table takes for two cells and no page for markup."""
    return _MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))


def number_text(value: float, digits: int) -> str:
    """Return a number, or a dash where there is none (nan)."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def render_markdown(sections: Sequence[Section]) -> str:
    """Return sections as Markdown: the best of a column bold, the second underlined."""
    return "\n\n".join(_section(section) for section in sections)


def _section(section: Section) -> str:
    table = section.table
    headers = [escape(column.whole) for column in table.columns]
    lines = [
        f"### {escape(section.heading)}", "", escape(section.intro), "",
        _table(headers, [[_cell(cell) for cell in row] for row in table.rows]),
    ]  # fmt: skip
    for note in (*section.notes, *(["Bold: the best of a column; underlined: the second."] if table.ranked else [])):
        lines += ["", escape(note)]
    return "\n".join(lines)


def _cell(cell: Text) -> str:
    return _RANKED[cell.rank].format(escape(cell.text))


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
