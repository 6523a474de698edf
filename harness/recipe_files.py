"""Find, merge and override recipes.

A recipe file maps a profile to a list of layers. A layer may carry conditions (``family``, ``model_is``,
``dataset``, ``setting``: each a name or a glob) and a ``source``; its other keys are merged in order, later layers
win. First come the layers of ``harness/profiles.yaml`` (what all methods share), then those of the method's own file,
then ``--set``.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import model_spec
from cispbench.harness.recipe import OptimRecipe, Recipe, check_partial, load_strict
from cispbench.splits.errors import CispbenchError, RecipeError, UsageError, nearest
from cispbench.splits.settings import Setting
from cispbench.splits.strict_yaml import load_yaml, parse_yaml

PROFILES = ("paper", "mini", "quick")
CONDITIONS = ("family", "model_is", "dataset", "setting")
SHARED_FILE = Path(__file__).parent / "profiles.yaml"


def load_recipe(
    method: type[Method], setting: Setting, profile: str, model: str | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Return the recipe of a method on a setting under a profile, checked to the last key.

    ``model`` replaces the method's own choice; ``overrides`` are ``section.key=value`` in YAML. Raises RecipeError
    naming the file and the key.
    """
    layers, chosen = _chosen_layers(method, setting, profile, model)
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, {key: value for key, value in layer.items() if key not in (*CONDITIONS, "source")})
    merged["model"] = chosen
    for text in overrides:
        change = parse_override(text)
        if "model" in change:
            model_spec(str(change["model"]))
            raise RecipeError(f"--set {text}: a model brings its family's recipe.", hint="Use --model instead.")
        _merge(merged, change)
    recipe: Recipe = load_strict(Recipe, merged, "recipe")
    recipe.phase(1)
    load_strict(method.Options, recipe.method, "method")
    return recipe


def recipe_sources(method: type[Method], setting: Setting, profile: str, model: str | None = None) -> list[str]:
    """Return where the recipe's values come from, layer by layer."""
    layers, _ = _chosen_layers(method, setting, profile, model)
    return [str(layer["source"]) for layer in layers if "source" in layer]


def _chosen_layers(
    method: type[Method], setting: Setting, profile: str, model: str | None
) -> tuple[list[dict[str, Any]], str]:
    """Return the layers whose conditions hold, and the model they lead to."""
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}.", hint=nearest(profile, PROFILES))
    options = method.Options
    layers = _layers(SHARED_FILE, profile, options) + _layers(recipe_file(method), profile, options)
    facts = {"dataset": setting.dataset, "setting": setting.name}
    chosen = model or _last_model(layers, facts)
    if chosen is None:
        raise RecipeError(
            f"no recipe names a model for {method.name} under the profile {profile}.", hint="Use --model."
        )
    facts |= {"model_is": chosen, "family": model_spec(chosen).family}
    return [layer for layer in layers if _holds(layer, facts)], chosen


def recipe_file(method: type[Method]) -> Path | None:
    """Return ``recipes/<name>.yaml`` beside the method's module, or None where it has none."""
    path = Path(inspect.getfile(method)).parent / "recipes" / f"{method.name}.yaml"
    return path if path.is_file() else None


def parse_override(text: str) -> dict[str, Any]:
    """Read ``optim.lr=0.002`` as nested mappings. Raises RecipeError."""
    path, separator, value = text.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise RecipeError(f"--set {text!r} is not of the form section.key=value.", hint="Example: --set optim.lr=0.002")
    try:
        nested: Any = parse_yaml(value, f"--set {text}")
    except CispbenchError as error:
        raise RecipeError(f"--set {text}: the value is not valid YAML.", hint="Quote it, or check brackets.") from error
    for key in reversed(keys):
        nested = {key: nested}
    merged: dict[str, Any] = nested
    return merged


def _layers(path: Path | None, profile: str, options: type[Any]) -> list[dict[str, Any]]:
    if path is None:
        return []
    content = load_yaml(path)
    if not isinstance(content, Mapping):
        raise RecipeError(f"{path}: a recipe file maps profiles to lists of layers.")
    for name in content:
        if name not in PROFILES:
            raise RecipeError(f"{path}: unknown profile {name!r}.", hint=nearest(str(name), PROFILES))
    layers = content.get(profile) or []
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise RecipeError(f"{path}: {profile} must be a list of layers.")
    for layer in layers:
        changes = {key: value for key, value in layer.items() if key not in (*CONDITIONS, "source")}
        check_partial(Recipe, changes, f"{path}: {profile}")
        check_partial(OptimRecipe, changes.get("later", {}), f"{path}: {profile}: later")
        check_partial(options, changes.get("method", {}), f"{path}: {profile}: method")
    return layers


def _holds(layer: Mapping[str, Any], facts: Mapping[str, str]) -> bool:
    return all(
        any(fnmatch.fnmatchcase(facts[condition], str(glob)) for glob in _as_list(layer[condition]))
        for condition in CONDITIONS
        if condition in layer and condition in facts
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _last_model(layers: Sequence[dict[str, Any]], facts: Mapping[str, str]) -> str | None:
    named = [layer["model"] for layer in layers if "model" in layer and _holds(layer, facts)]
    return named[-1] if named else None


def _merge(target: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value
    for section in ("optim", "later"):
        if isinstance(target.get(section), dict) and isinstance(changes.get(section), Mapping):
            _one_length(target[section], changes[section])


def _one_length(optim: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """A layer that sets epochs takes iterations away, and the other way round."""
    for name, other in (("epochs", "iterations"), ("iterations", "epochs")):
        if changes.get(name) is not None and other not in changes:
            optim.pop(other, None)
