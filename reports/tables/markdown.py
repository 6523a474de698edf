"""Markdown tables that read well as plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from cispbench.reports.tables.layout import Section, one_line

# What Markdown would take for markup. An underscore within a word and brackets that make no link are left as they are:
# that reads better.
_MARKUP = re.compile(r"[\\|`*<]|~~|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|\[(?=[^\]]*\][(\[:])|&(?=[A-Za-z0-9#]+;)")
_RANKED = {0: "{}", 1: "**{}**", 2: "<ins>{}</ins>"}


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a GitHub table that shows exactly the given texts."""
    return _table([escape(text) for text in headers], [[escape(text) for text in row] for row in rows])


def escape(text: str) -> str:
    """Return a text as one line without markup or a table's border (``|``); tabulate itself escapes nothing."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text))


def render_markdown(sections: Sequence[Section]) -> str:
    """Return sections as Markdown: the best of a column bold, the second underlined."""
    parts = []
    for section in sections:
        headers = [escape(f"{column.over} {column.name}".strip()) for column in section.table.columns]
        rows = [[_RANKED[rank].format(escape(text)) for text, rank in row] for row in section.table.rows]
        parts += [f"### {escape(section.heading)}", escape(section.intro), _table(headers, rows)]
        parts += map(escape, section.all_notes)
    return "\n\n".join(parts)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
