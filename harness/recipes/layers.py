"""Find, merge and override recipes, and know where each value comes from.

A recipe file maps a profile to a list of layers. A layer may carry conditions (``family``, ``model_is``,
``dataset``, ``setting``: each a name or a glob) and a ``source``; its other keys are merged in order, later layers
win. First come the layers of ``profiles.yaml`` (what all methods share), then those of the method's own file,
then ``--set``. The key ``quirks`` beside the profiles is read by ``quirks.py``.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import inspect
import typing
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import model_spec
from cispbench.harness.recipes.fields import OptimRecipe, Recipe, load_strict
from cispbench.splits.errors import CispbenchError, RecipeError, UsageError, nearest
from cispbench.splits.settings import Setting
from cispbench.splits.strict_fields import read_part, refusal
from cispbench.splits.strict_yaml import load_yaml, parse_yaml

PROFILES = ("paper", "mini", "quick")
QUIRKS = "quirks"
CONDITIONS = ("family", "model_is", "dataset", "setting")
SHARED_FILE = Path(__file__).parent / "profiles.yaml"
DEFAULT = "default"


@dataclass(frozen=True)
class SourcedRecipe:
    """A recipe with all its values by dotted path (``optim.lr``), the method's options included.

    ``sources`` says for each of them which layer set it last, ``--set`` or ``--model``, or ``default``: no layer does.
    """

    recipe: Recipe
    values: dict[str, Any]
    sources: dict[str, str]


def load_recipe(
    method: type[Method], setting: Setting, profile: str, model: str | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Return the recipe of a method on a setting under a profile, checked to the last key.

    ``model`` replaces the method's own choice; ``overrides`` are ``section.key=value`` in YAML. Raises RecipeError
    naming the file and the key.
    """
    return resolve_recipe(method, setting, profile, model, overrides).recipe


def resolve_recipe(
    method: type[Method], setting: Setting, profile: str, model: str | None = None, overrides: Sequence[str] = ()
) -> SourcedRecipe:
    """Return what ``load_recipe`` does with the source of every value. Raises RecipeError."""
    layers, chosen = _chosen_layers(method, setting, profile, model)
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in layers:
        changes = _changes(layer)
        merge(merged, changes)
        sources |= dict.fromkeys(_touched(changes), str(layer["source"]))
    merged["model"] = chosen
    if model is not None:
        sources["model"] = "--model"
    for text in overrides:
        change = _keep_words(parse_override(text), text, method.Options)
        if "model" in change:
            model_spec(str(change["model"]))
            raise RecipeError(f"--set {text}: a model brings its family's recipe.", hint="Use --model instead.")
        merge(merged, change)
        sources |= dict.fromkeys(_touched(change), "--set")
    recipe = checked_recipe(merged, method.Options)
    values = flat(complete(recipe, method.Options))
    return SourcedRecipe(recipe, values, {path: sources.get(path, DEFAULT) for path in values})


def checked_recipe(merged: Mapping[str, Any], options: type[Any]) -> Recipe:
    """Build a recipe from merged layers, checked for both phases and with the method's options. Raises RecipeError."""
    recipe: Recipe = load_strict(Recipe, merged, "recipe")
    recipe.phase(1)
    load_strict(options, recipe.method, "method")
    return recipe


def complete(recipe: Recipe, options: type[Any]) -> dict[str, Any]:
    """Return the recipe as plain values with every option of the method, whether the recipe sets it or not."""
    method = dataclasses.asdict(load_strict(options, recipe.method, "method"))
    return dataclasses.replace(recipe, method=method).as_dict()


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, by dotted path; lists are values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def recipe_facts(setting: Setting, model: str) -> dict[str, str]:
    """Return what the conditions of layers and quirks are held against."""
    return {
        "dataset": setting.dataset, "setting": setting.name, "model_is": model, "family": model_spec(model).family
    }  # fmt: skip


def holds(conditions: Mapping[str, Any], facts: Mapping[str, str]) -> bool:
    """Return whether every condition among ``conditions`` that ``facts`` know of matches (other keys are ignored)."""
    return all(
        any(fnmatch.fnmatchcase(facts[condition], str(glob)) for glob in _as_list(conditions[condition]))
        for condition in CONDITIONS
        if condition in conditions and condition in facts
    )


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


def check_changes(changes: Mapping[str, Any], options: type[Any], place: str) -> None:
    """Check the keys and types of a part of a recipe. Raises RecipeError naming ``place``."""
    problems: list[str] = []
    read_part(Recipe, changes, problems)
    for section, kind in (("later", OptimRecipe), ("method", options)):
        if isinstance(changes.get(section), Mapping):  # else ``read_part`` has refused it
            read_part(kind, changes[section], problems, section)
    if problems:
        raise refusal(place, problems, RecipeError)


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return ``optim.lr`` and a value as nested mappings."""
    for key in reversed(path.split(".")):
        value = {key: value}
    made: dict[str, Any] = value
    return made


def parse_override(text: str) -> dict[str, Any]:
    """Read ``optim.lr=0.002`` as nested mappings. Raises RecipeError."""
    path, separator, value = text.partition("=")
    path = path.strip()
    if not separator or not all(path.split(".")):
        raise RecipeError(f"--set {text!r} is not of the form section.key=value.", hint="Example: --set optim.lr=0.002")
    try:
        return nested(path, parse_yaml(value, f"--set {text}"))
    except CispbenchError as error:
        raise RecipeError(f"--set {text}: the value is not valid YAML.", hint="Quote it, or check brackets.") from error


def _keep_words(change: dict[str, Any], text: str, options: type[Any]) -> dict[str, Any]:
    """Keep ``true`` or ``1`` as it was typed where the option is a choice of words that has it."""
    path, _, word = (part.strip() for part in text.partition("="))
    kind = _type_of(path, options)
    if typing.get_origin(kind) is Literal and word in typing.get_args(kind):
        return nested(path, word)
    return change


def _type_of(path: str, options: type[Any]) -> Any:
    section, _, name = path.partition(".")
    kinds = typing.get_type_hints(Recipe) | {"later": OptimRecipe, "method": options}
    owner = kinds.get(section)
    if not name or not dataclasses.is_dataclass(owner):
        return owner
    return typing.get_type_hints(owner).get(name)


def _chosen_layers(
    method: type[Method], setting: Setting, profile: str, model: str | None
) -> tuple[list[dict[str, Any]], str]:
    """Return the layers whose conditions hold, and the model they lead to."""
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}.", hint=nearest(profile, PROFILES))
    options = method.Options
    layers = _layers(SHARED_FILE, profile, options) + _layers(recipe_file(method), profile, options)
    before = {"dataset": setting.dataset, "setting": setting.name}
    named = [layer["model"] for layer in layers if "model" in layer and holds(layer, before)]
    chosen = model or (named[-1] if named else None)
    if chosen is None:
        raise RecipeError(
            f"no recipe names a model for {method.name} under the profile {profile}.", hint="Use --model."
        )
    facts = recipe_facts(setting, chosen)
    return [layer for layer in layers if holds(layer, facts)], chosen


def _layers(path: Path | None, profile: str, options: type[Any]) -> list[dict[str, Any]]:
    if path is None:
        return []
    stat = path.stat()
    return _read_layers(path, profile, typing.cast(Hashable, options), (stat.st_mtime_ns, stat.st_size))


@cache
def _read_layers(path: Path, profile: str, options: Any, _state: tuple[int, int]) -> list[dict[str, Any]]:
    """Read a file's layers once as long as it stays as it is: a sweep asks for them a hundred times."""
    layers = read_recipe_file(path).get(profile) or []
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise RecipeError(f"{path}: {profile} must be a list of layers.")
    for layer in layers:
        check_changes(_changes(layer), options, f"{path}: {profile}")
    return [{"source": f"{path.name}, which gives no source", **layer} for layer in layers]


def _changes(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in layer.items() if key not in (*CONDITIONS, "source")}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def merge(target: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Lay ``changes`` over ``target``, in place; epochs take iterations away, and the other way round."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            merge(target[key], value)
        else:
            target[key] = copy.deepcopy(value)  # layers are kept, and must not change
    for section in ("optim", "later"):
        if isinstance(target.get(section), dict) and isinstance(changes.get(section), Mapping):
            for other in _taken_away(changes[section]):
                target[section].pop(other, None)


def _touched(changes: Mapping[str, Any]) -> list[str]:
    """Return the paths a layer decides on: those it sets, and those it takes away."""
    sections = {name: changes[name] for name in ("optim", "later") if isinstance(changes.get(name), Mapping)}
    away = [f"{name}.{other}" for name, section in sections.items() for other in _taken_away(section)]
    return [*flat(changes), *away]


def _taken_away(optim: Mapping[str, Any]) -> list[str]:
    """Return what goes when a layer sets a length: iterations for epochs, epochs for iterations."""
    pairs = (("epochs", "iterations"), ("iterations", "epochs"))
    return [other for name, other in pairs if optim.get(name) is not None and other not in optim]
