"""Find and read recipe files: their profiles, the layers of a profile, and the conditions of a layer.

A recipe file maps a profile to a list of layers. A layer is a mapping that holds

- a part of a recipe, for example ``optim: {lr: 0.01}``;
- conditions: ``family``, ``model_is``, ``dataset``, ``setting``, ``base_is`` (the method that a wrapper changes),
  each a name, a glob, or a list of them. The layer counts only where all of them hold;
- ``source``: where its values come from.

``profiles.yaml`` holds what all methods share. The key ``quirks`` beside the profiles is read by ``quirks.py``.
"""

from __future__ import annotations

import fnmatch
import inspect
import typing
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import model_spec
from cispbench.harness.recipes.fields import OptimRecipe, Recipe
from cispbench.harness.recipes.old_names import optim_sections, with_current_names
from cispbench.splits.errors import RecipeError, nearest
from cispbench.splits.settings import Setting
from cispbench.splits.strict_fields import read_part, refusal
from cispbench.splits.strict_yaml import load_yaml

PROFILES = ("paper", "mini", "quick")
QUIRKS = "quirks"
CONDITIONS = ("family", "model_is", "dataset", "setting", "base_is")
SHARED_FILE = Path(__file__).parent / "profiles.yaml"


def recipe_file(method: type[Method]) -> Path | None:
    """Return ``recipes/<name>.yaml`` beside the method's module, or None where it has none."""
    return beside(method, "recipes")


def beside(method: type[Method], folder: str) -> Path | None:
    """Return ``<folder>/<name>.yaml`` beside the method's module, or None where there is no such file."""
    try:
        module = Path(inspect.getfile(method))
    except (TypeError, OSError):  # a class that was typed in, not imported
        return None
    path = module.parent / folder / f"{method.name}.yaml"
    return path if path.is_file() else None


def read_recipe_file(path: Path) -> Mapping[str, Any]:
    """Return a recipe file's content: profiles and perhaps quirks. Raises RecipeError naming it."""
    content = load_yaml(path)
    if not isinstance(content, Mapping):
        raise RecipeError(f"{path}: a recipe file maps profiles to lists of layers.")
    for name in content:
        if name not in (*PROFILES, QUIRKS):
            raise RecipeError(f"{path}: unknown profile {name!r}.", hint=nearest(str(name), (*PROFILES, QUIRKS)))
    return content


def read_layers(path: Path | None, profile: str, options: type[Any]) -> list[dict[str, Any]]:
    """Return the layers of a file's profile, checked; none where there is no file. Raises RecipeError naming it."""
    if path is None:
        return []
    stat = path.stat()
    return _cached_layers(path, profile, typing.cast(Hashable, options), (stat.st_mtime_ns, stat.st_size))


@cache
def _cached_layers(path: Path, profile: str, options: Any, _state: tuple[int, int]) -> list[dict[str, Any]]:
    """Read a file's layers again only when the file has changed: a sweep asks for them a hundred times."""
    layers = read_recipe_file(path).get(profile) or []
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise RecipeError(f"{path}: {profile} must be a list of layers.")
    layers = [with_current_names(layer, f"{path}: {profile}") for layer in layers]
    for layer in layers:
        check_changes(changes_of(layer), options, f"{path}: {profile}")
    return [{"source": f"{path.name}, which gives no source", **layer} for layer in layers]


def changes_of(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a recipe that a layer holds: all but its conditions and its source."""
    return {key: value for key, value in layer.items() if key not in (*CONDITIONS, "source")}


def check_changes(changes: Mapping[str, Any], options: type[Any], place: str) -> None:
    """Check the keys and types of a part of a recipe. Raises RecipeError naming ``place``."""
    problems: list[str] = []
    read_part(Recipe, changes, problems)
    sections = [(path, values, OptimRecipe) for path, values in optim_sections(changes) if path != "optim"]
    for path, values, kind in [*sections, ("method", changes.get("method"), options)]:
        if isinstance(values, Mapping):  # else it is among the problems
            read_part(kind, values, problems, path)
    if problems:
        raise refusal(place, problems, RecipeError)


def recipe_facts(setting: Setting, model: str) -> dict[str, str]:
    """Return what the conditions of layers and quirks are compared with, but for ``base_is``."""
    return {
        "dataset": setting.dataset, "setting": setting.name, "model_is": model, "family": model_spec(model).family
    }  # fmt: skip


def conditions_hold(conditions: Mapping[str, Any], facts: Mapping[str, str]) -> bool:
    """Return whether every condition matches its fact. Conditions without a fact, and other keys, are ignored."""
    return all(
        any(fnmatch.fnmatchcase(facts[condition], str(glob)) for glob in _as_list(conditions[condition]))
        for condition in CONDITIONS
        if condition in conditions and condition in facts
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
