"""Sections as one HTML page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cispbench.reports.tables.layout import Column, Section, Table, Text
from cispbench.reports.tables.terminal import printable

_RANKED = {0: "{}", 1: "<strong>{}</strong>", 2: '<span class="second">{}</span>'}
_STYLE = """\
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { margin: 1.5rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0.25rem 0; }
th, td { padding: 0.25rem 0.6rem; text-align: left; white-space: nowrap; }
thead tr:last-child th { border-bottom: 1px solid; }
tr.rule > * { border-top: 1px solid; }
.number { text-align: right; }
.over { text-align: center; border-bottom: 1px solid; }
.second { text-decoration: underline; }
.note { max-width: 60rem; font-size: 0.9rem; }"""


def render_html(sections: Sequence[Section], title: str = "cispbench table") -> str:
    """Return sections as a page: the best of a column strong, the second underlined."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{_text(title)}</title>",
            f"<style>\n{_STYLE}\n</style></head>",
            "<body>",
            *(line for section in sections for line in _section(section)),
            "</body>",
            "</html>",
        ]
    )


def _text(text: str) -> str:
    return escape(printable(" ".join(text.split())))


def _section(section: Section) -> list[str]:
    table = section.table
    notes = [*section.notes, *(["Bold: the best of a column; underlined: the second."] if table.ranked else [])]
    return [
        "<section>",
        f"<h2>{_text(section.heading)}</h2>",
        f"<div><table><caption>{_text(section.intro)}</caption>",
        "<thead>",
        *_head(table),
        "</thead>",
        "<tbody>",
        *(_row(table, place, row) for place, row in enumerate(table.rows)),
        "</tbody></table></div>",
        *(f'<p class="note">{_text(note)}</p>' for note in notes),
        "</section>",
    ]


def _head(table: Table) -> list[str]:
    lines = []
    if any(column.over for column in table.columns):
        cells = [
            f'<th class="over" scope="colgroup" colspan="{count}">{_text(over)}</th>'
            if over
            else f'<td colspan="{count}"></td>'
            for over, count in table.spans()
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    names = [f'<th scope="col"{_class(column)}>{_text(column.name)}</th>' for column in table.columns]
    return [*lines, f"<tr>{''.join(names)}</tr>"]


def _row(table: Table, place: int, row: Sequence[Text]) -> str:
    first, *others = row
    cells = [f'<th scope="row">{_text(first.text)}</th>']
    for column, cell in zip(table.columns[1:], others, strict=True):
        cells.append(f"<td{_class(column)}>{_RANKED[cell.rank].format(_text(cell.text))}</td>")
    opening = '<tr class="rule">' if place in table.rules else "<tr>"
    return f"{opening}{''.join(cells)}</tr>"


def _class(column: Column) -> str:
    return ' class="number"' if column.right else ""
