"""Quirks: named departures of a paper's released code from the paper, or from what its reader would expect.

A recipe file may hold, beside its profiles, a mapping ``quirks`` from names to mappings of these keys:

- ``what``: a sentence that says what the release does;
- ``option``: the dotted path of the recipe's value that switches it, with its ``released`` value and the value
  ``otherwise``;
- ``source``: where the release does it;
- conditions, as a layer has them.

Those of ``profiles.yaml`` hold for all methods. A quirk is in force where its conditions hold and the option has the
released value, whoever set it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cispbench.harness.method import Method
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.recipes.layers import build_recipe, with_all_options
from cispbench.harness.recipes.merging import flat, merge, nested
from cispbench.harness.recipes.overrides import current_path
from cispbench.harness.recipes.recipe_files import (
    CONDITIONS,
    QUIRKS,
    SHARED_FILE,
    check_changes,
    conditions_hold,
    read_recipe_file,
    recipe_facts,
    recipe_file,
)
from cispbench.harness.recipes.wrapped import NO_BASE, base_class
from cispbench.splits.errors import RecipeError
from cispbench.splits.settings import Setting
from cispbench.splits.strict_fields import read_fields

_MISSING = object()  # no value of a recipe


@dataclass(frozen=True)
class _QuirkEntry:
    """A quirk as its file holds it."""

    what: str
    option: str
    released: Any
    otherwise: Any
    source: str
    family: Any = None
    model_is: Any = None
    dataset: Any = None
    setting: Any = None
    base_is: Any = None


@dataclass(frozen=True)
class Quirk:
    """One departure of released code, with the option that switches it.

    ``method``: the method that has it, None for one that all methods share. ``conditions``: where it can hold at all.
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


def read_quirks(method: type[Method], base: type[Method] | None = None) -> tuple[Quirk, ...]:
    """Return the shared quirks, the method's own, and those of a wrapper's ``base``.

    Raises RecipeError naming file, quirk and key.
    """
    found: dict[str, Quirk] = {}
    for path, owner in ((SHARED_FILE, None), (recipe_file(method), method.name)):
        if path is None:
            continue
        entries = read_recipe_file(path).get(QUIRKS) or {}
        if not isinstance(entries, Mapping):
            raise RecipeError(f"{path}: {QUIRKS} maps names to what they are, not {entries!r}.")
        for name, entry in entries.items():
            if name in found:
                raise RecipeError(f"{path}: {QUIRKS}: {name} is the name of a shared quirk, too.", hint="Rename it.")
            found[name] = _read(str(name), owner, entry, method.Options, path)
    of_base = () if base is None else (quirk for quirk in read_quirks(base) if quirk.name not in found)
    return (*found.values(), *map(_as_base_option, of_base))


def quirks_in_force(method: type[Method], setting: Setting, recipe: Recipe) -> tuple[Quirk, ...]:
    """Return the quirks whose conditions hold and whose option has the released value. Raises RecipeError."""
    return tuple(quirk for quirk, in_force in quirk_states(method, setting, recipe) if in_force)


def quirk_states(method: type[Method], setting: Setting, recipe: Recipe) -> list[tuple[Quirk, bool | None]]:
    """Return every quirk with whether it is in force; None where its conditions do not hold. Raises RecipeError."""
    values = _option_values(recipe, method)
    base = base_class(method, with_all_options(recipe, method)["method"])
    facts = {**recipe_facts(setting, recipe.model), "base_is": base.name if base else NO_BASE}
    return [
        (quirk, _value(quirk.option, values) == quirk.released if conditions_hold(quirk.conditions, facts) else None)
        for quirk in read_quirks(method, base)
    ]


def _option_values(recipe: Recipe, method: type[Method]) -> dict[str, Any]:
    """Return every value a quirk can depend on; ``later`` holds all that is in force from step 1 on."""
    values = with_all_options(recipe, method)
    later = {key: getattr(recipe.phase(1), key) for key in values["optim"]}
    return flat({**values, "later": later})


def _value(option: str, values: Mapping[str, Any]) -> Any:
    """Return the value of an option; a factor that no recipe gives is 1, and a phase of its own may be missing."""
    return values.get(option, 1.0 if {"rates", "decay"} & set(option.split(".")) else _MISSING)


def _as_base_option(quirk: Quirk) -> Quirk:
    section, _, name = quirk.option.partition(".")
    return replace(quirk, option=f"method.base_options.{name}") if section == "method" else quirk


def _read(name: str, owner: str | None, entry: Any, options: type[Any], path: Path) -> Quirk:
    place = f"{path}: {QUIRKS}: {name}"
    read = read_fields(_QuirkEntry, entry, place, RecipeError)
    read = replace(read, option=current_path(read.option))
    for key, value in (("released", read.released), ("otherwise", read.otherwise)):
        _check_value(read.option, value, options, f"{place}: {key}")
    if read.released == read.otherwise:
        raise RecipeError(f"{place}: released and otherwise are both {read.released!r}.")
    conditions = {key: entry[key] for key in CONDITIONS if key in entry}
    return Quirk(name, owner, read.what, read.option, read.released, read.otherwise, read.source, conditions)


def _check_value(option: str, value: Any, options: type[Any], place: str) -> None:
    """Try the value in an otherwise plain recipe: path, type and range must all be right."""
    change = nested(option, value)
    if isinstance(value, Mapping):
        raise RecipeError(f"{place} must be the value of one option, not {value!r}.")
    check_changes(change, options, place)
    if "method" in change:  # other options of the method may be required, and have no value here
        return
    plain: dict[str, Any] = {"model": "any", "optim": {"epochs": 1}}
    merge(plain, change)
    try:
        build_recipe(plain)
    except RecipeError as error:
        raise RecipeError(f"{place}: {error.message}", hint=error.hint) from error
