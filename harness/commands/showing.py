"""What ``cispbench show`` prints: a recipe as it would run, where each value comes from, and the quirks."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import yaml

from cispbench.harness.recipes.ablation import load_ablation
from cispbench.harness.recipes.layers import DEFAULT, SourcedRecipe, with_all_options
from cispbench.harness.recipes.quirks import Quirk, quirk_states
from cispbench.harness.registry import load_method
from cispbench.harness.runs.prepare import recipe_with_sources
from cispbench.harness.runs.request import RunRequest
from cispbench.reports.tables.terminal import width
from cispbench.splits.settings import parse_setting

SHORT_SOURCES = (DEFAULT, "--set", "--model")  # written beside the value, without a footnote


def show_recipe(request: RunRequest, *, as_json: bool) -> str:
    """Return a recipe as YAML, with the source of each value as a footnote and the method's quirks; or as JSON."""
    cls, chosen = load_method(request.method), parse_setting(request.setting)
    sourced = recipe_with_sources(request)
    states = quirk_states(cls, chosen, sourced.recipe)
    if as_json:
        sources = {path: {"value": value, "source": sourced.sources[path]} for path, value in sourced.values.items()}
        quirks = [_quirk_row(quirk, in_force) for quirk, in_force in states]
        return json.dumps({**with_all_options(sourced.recipe, cls), "sources": sources, "quirks": quirks})
    notes = {source: number for number, source in enumerate(_footnotes(sourced), start=1)}
    head = f"# {request.method} on {chosen.name}, profile {request.profile}"
    parts = [[head, *_yaml_lines(sourced, notes)], ["# Sources", *_source_lines(notes)]]
    if states:
        parts.append(["# Quirks of released code", *(_quirk_line(quirk, in_force) for quirk, in_force in states)])
    return "\n\n".join("\n".join(part) for part in parts if len(part) > 1)


def show_ablation(method: str, *, as_json: bool) -> str:
    """Return the rows of a method's ablation, each with the options of ``cispbench run`` that make it."""
    rows = load_ablation(load_method(method))
    if as_json:
        return json.dumps({name: list(words) for name, words in rows.items()})
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {' '.join(f'--set {word}' for word in words)}".rstrip() for name, words in rows.items()]
    return "\n".join(lines)


def _footnotes(sourced: SourcedRecipe) -> list[str]:
    return [source for source in dict.fromkeys(sourced.sources.values()) if source not in SHORT_SOURCES]


def _yaml_lines(sourced: SourcedRecipe, notes: dict[str, int]) -> list[str]:
    rows: list[tuple[str, str]] = []
    open_sections: list[str] = []
    for path, value in sourced.values.items():
        *sections, name = path.split(".")
        for depth, section in enumerate(sections):
            if sections[: depth + 1] != open_sections[: depth + 1]:
                rows.append((f"{'  ' * depth}{_flow(section)}:", ""))
        open_sections = sections
        source = sourced.sources[path]
        note = f"[{notes[source]}]" if source in notes else source
        rows.append((f"{'  ' * len(sections)}{_flow(name)}: {_flow(value)}", note))
    width = max(len(text) for text, _ in rows)
    return [f"{text:<{width}}  # {note}" if note else text for text, note in rows]


def _flow(value: Any) -> str:
    """Return a value on one line of YAML."""
    # In a list, because a bare value would end with a line of its own ("...").
    listed: str = yaml.safe_dump([value], default_flow_style=True, width=10_000)
    return listed.strip()[1:-1]


def _source_lines(notes: dict[str, int]) -> list[str]:
    return [_wrapped(f"[{number}] {source}", len(f"[{number}] ")) for source, number in notes.items()]


def _quirk_line(quirk: Quirk, in_force: bool | None) -> str:
    if in_force is None:
        state, switch = f"only for {quirk.where}", ""
    elif in_force:
        state, switch = "in force", f" Switched off by {quirk.switch(released=False)}"
    else:
        state, switch = "off", f" Switched on by {quirk.switch(released=True)}"
    return _wrapped(f"{quirk.name} ({state}): {quirk.what}{switch}", 2)


def _quirk_row(quirk: Quirk, in_force: bool | None) -> dict[str, Any]:
    return {
        "name": quirk.name,
        "in_force": bool(in_force),
        "here": in_force is not None,
        "what": quirk.what,
        "option": quirk.option,
        "released": quirk.released,
        "otherwise": quirk.otherwise,
        "switch": quirk.switch(released=not in_force),
        "source": quirk.source,
    }


def _wrapped(text: str, indent: int) -> str:
    """Return a comment of several lines that breaks no word, so that options and paths can be copied."""
    lines = textwrap.wrap(
        text, width() - 2, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(f"# {line}" for line in lines)
