"""Sections as one HTML page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from cispbench.reports.tables.layout import Section, one_line


def load_template(name: str) -> Template:
    """Return a template of ``reports/templates``: it escapes all values, a missing one is an error."""
    found = Environment(
        loader=PackageLoader("cispbench.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    found.filters["line"] = one_line
    return found.get_template(name)


def render_html(sections: Sequence[Section], title: str = "cispbench table", home: str = "") -> str:
    """Return sections as a page: the best of a column strong, the second underlined; ``home``: a page to link to.

    Many sections have a list of contents above them. Addresses in notes become links.
    """
    return load_template("table.html.j2").render(title=title, sections=sections, home=home)
