"""Quirks: where a paper's released code departs from the paper, or from what its reader would expect, by name.

A recipe file may hold, beside its profiles, a mapping ``quirks``: a name, and for it ``what`` the release does (a
sentence), the ``option`` that decides it (a dotted path in the recipe), its ``released`` value and the value
``otherwise``, the ``source``, and conditions as a layer has them. Those of ``profiles.yaml`` hold for all
methods. A quirk is in force where its conditions hold and the option has the released value, whoever set it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cispbench.harness.method import Method, NoOptions
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.recipes.layers import (
    CONDITIONS,
    QUIRKS,
    SHARED_FILE,
    check_changes,
    checked_recipe,
    complete,
    flat,
    holds,
    merge,
    nested,
    read_recipe_file,
    recipe_facts,
    recipe_file,
)
from cispbench.splits.errors import RecipeError, nearest
from cispbench.splits.settings import Setting

TEXTS = ("what", "option", "source")
FIELDS = (*TEXTS, "released", "otherwise")


@dataclass(frozen=True)
class Quirk:
    """One departure of released code, with the option that switches it.

    ``method``: whose it is, None for one that all methods share. ``conditions``: where it can hold at all.
    """

    name: str
    method: str | None
    what: str
    option: str
    released: Any
    otherwise: Any
    source: str
    conditions: dict[str, Any]

    def switch(self, released: bool) -> str:
        """Return the words that give the option its released value, or the other one."""
        return f"--set {self.option}={as_word(self.released if released else self.otherwise)}"

    @property
    def where(self) -> str:
        """The conditions in words; empty where it can hold everywhere."""
        return "; ".join(
            f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"
            for key, value in self.conditions.items()
        )


def as_word(value: Any) -> str:
    """Return a value as ``--set`` takes it and YAML writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def read_quirks(method: type[Method]) -> tuple[Quirk, ...]:
    """Return the shared quirks and the method's own. Raises RecipeError naming file, quirk and key."""
    own = recipe_file(method)
    found: dict[str, Quirk] = {}
    for path, owner in ((SHARED_FILE, None), (own, method.name)):
        if path is None:
            continue
        entries = read_recipe_file(path).get(QUIRKS) or {}
        if not isinstance(entries, Mapping):
            raise RecipeError(f"{path}: {QUIRKS} maps names to what they are, not {entries!r}.")
        for name, entry in entries.items():
            if name in found:
                raise RecipeError(f"{path}: {QUIRKS}: {name} is the name of a shared quirk, too.", hint="Rename it.")
            found[name] = _read(str(name), owner, entry, method.Options, path)
    return tuple(found.values())


def quirks_in_force(method: type[Method], setting: Setting, recipe: Recipe) -> tuple[Quirk, ...]:
    """Return the quirks whose conditions hold and whose option has the released value. Raises RecipeError."""
    return tuple(quirk for quirk, in_force in quirk_states(method, setting, recipe) if in_force)


def quirk_states(method: type[Method], setting: Setting, recipe: Recipe) -> list[tuple[Quirk, bool | None]]:
    """Return every quirk with whether it is in force; None where its conditions do not hold. Raises RecipeError."""
    facts, values = recipe_facts(setting, recipe.model), _option_values(recipe, method.Options)
    return [
        (quirk, values[quirk.option] == quirk.released if holds(quirk.conditions, facts) else None)
        for quirk in read_quirks(method)
    ]


def _option_values(recipe: Recipe, options: type[Any]) -> dict[str, Any]:
    """Every value a quirk can depend on; ``later`` holds all of what is in force from step 1 on."""
    values = complete(recipe, options)
    later = {key: getattr(recipe.phase(1), key) for key in values["optim"]}
    return flat({**values, "later": later})


def _read(name: str, owner: str | None, entry: Any, options: type[Any], path: Path) -> Quirk:
    place = f"{path}: {QUIRKS}: {name}"
    if not isinstance(entry, Mapping):
        raise RecipeError(f"{place} must be a mapping of {', '.join(FIELDS)}, not {entry!r}.")
    for key in entry:
        if key not in (*FIELDS, *CONDITIONS):
            raise RecipeError(f"{place}: unknown key {key!r}.", hint=nearest(str(key), (*FIELDS, *CONDITIONS)))
    for key in FIELDS:
        if key not in entry:
            raise RecipeError(f"{place}: {key} is missing.")
    for key in TEXTS:
        if not isinstance(entry[key], str):
            raise RecipeError(f"{place}: {key} must be text, not {entry[key]!r}.")
    for key in ("released", "otherwise"):
        _check_value(entry["option"], entry[key], options, f"{place}: {key}")
    if entry["released"] == entry["otherwise"]:
        raise RecipeError(f"{place}: released and otherwise are both {entry['released']!r}.")
    conditions = {key: entry[key] for key in CONDITIONS if key in entry}
    return Quirk(name, owner, **{key: entry[key] for key in FIELDS}, conditions=conditions)


def _check_value(option: str, value: Any, options: type[Any], place: str) -> None:
    """Try the value in an otherwise plain recipe: path, type and range must all be right."""
    change = nested(option, value)
    if isinstance(value, Mapping):
        raise RecipeError(f"{place} must be the value of one option, not {value!r}.")
    check_changes(change, options, place)
    if "method" in change:  # its other options may have no defaults to try it with
        return
    plain: dict[str, Any] = {"model": "any", "optim": {"epochs": 1}}
    merge(plain, change)
    try:
        checked_recipe(plain, NoOptions)
    except RecipeError as error:
        raise RecipeError(f"{place}: {error.message}", hint=error.hint) from error
