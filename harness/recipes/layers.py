"""Merge the layers of recipe files into a recipe, and know where each of its values comes from.

Layers are parts of a recipe with conditions and a source (see ``recipe_files.py``). Those whose conditions hold are
merged in this order, and for each value the last one wins:

1. those of ``profiles.yaml``, which all methods share;
2. those of ``recipes/<name>.yaml`` beside the method's module; for a wrapper below them those of its base
   (``wrapped.py``);
3. ``--model``;
4. the overrides ``--set section.key=value``, in the order of the command line.

Conditions may be on the model, so the model is found first.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import model_spec
from cispbench.harness.recipes.fields import OptimRecipe, Recipe, load_strict
from cispbench.harness.recipes.old_names import optim_sections, with_current_names
from cispbench.harness.recipes.recipe_files import (
    PROFILES,
    SHARED_FILE,
    changes_of,
    conditions_hold,
    read_layers,
    recipe_facts,
)
from cispbench.harness.recipes.wrapped import layers_with_bases
from cispbench.harness.registry import read_options
from cispbench.splits.errors import CispbenchError, RecipeError, UsageError, closest, nearest
from cispbench.splits.settings import Setting
from cispbench.splits.strict_fields import refusal
from cispbench.splits.strict_yaml import parse_yaml

DEFAULT = "default"


@dataclass(frozen=True)
class SourcedRecipe:
    """A recipe with all its values by dotted path (``optim.lr``), the method's options included.

    ``sources``: for each value the source of the layer that set it last, ``--set`` or ``--model``; ``default`` where
    nothing sets it.
    """

    recipe: Recipe
    values: dict[str, Any]
    sources: dict[str, str]


def load_recipe(
    method: type[Method], setting: Setting, profile: str, model: str | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Return the recipe of a method on a setting under a profile, with every key and value checked.

    ``model`` replaces the method's own choice; ``overrides`` are ``section.key=value`` in YAML. Raises RecipeError
    naming the file and the key.
    """
    return resolve_recipe(method, setting, profile, model, overrides).recipe


def resolve_recipe(
    method: type[Method], setting: Setting, profile: str, model: str | None = None, overrides: Sequence[str] = ()
) -> SourcedRecipe:
    """Return the recipe as ``load_recipe`` does, with the source of every value. Raises RecipeError."""
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}.", hint=nearest(profile, PROFILES))
    own, classes = layers_with_bases(method, profile, setting, _asked_of_bases(overrides))
    kinds = _kinds(classes)
    _check_paths(overrides, kinds)
    layers = read_layers(SHARED_FILE, profile, method.Options) + own
    chosen = model or _model_of(layers, setting)
    if chosen is None:
        raise RecipeError(
            f"no recipe names a model for {method.name} under the profile {profile}.", hint="Use --model."
        )
    facts = recipe_facts(setting, chosen)
    changes = [(changes_of(layer), str(layer["source"])) for layer in layers if conditions_hold(layer, facts)]
    changes += [({"model": model}, "--model")] if model is not None else []
    changes += [(_read_override(text, kinds), "--set") for text in overrides]
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for change, source in changes:
        merge(merged, change)
        sources |= dict.fromkeys(_decided(change), source)
    recipe = build_recipe(merged | {"model": chosen})
    _check_steps(recipe, setting)
    _check_base(recipe, classes)
    values = flat(with_all_options(recipe, method))
    return SourcedRecipe(recipe, values, {path: sources.get(path, DEFAULT) for path in values})


def build_recipe(merged: Mapping[str, Any]) -> Recipe:
    """Build a recipe from merged layers and check it, later steps and phases too. Raises RecipeError."""
    recipe = load_strict(Recipe, merged, "recipe")
    for step in (1, *map(int, recipe.steps)):
        for name in ("train", *recipe.phases):
            recipe.phase(step, name)
    return recipe


def with_all_options(recipe: Recipe, method: type[Method]) -> dict[str, Any]:
    """Return the recipe as plain values, with the defaults of those method's options that the recipe does not set.

    Raises RecipeError for an option that the method does not have, or whose value is wrong.
    """
    return dataclasses.replace(recipe, method=dataclasses.asdict(read_options(method, recipe.method))).as_dict()


def parse_override(text: str) -> dict[str, Any]:
    """Read ``optim.lr=0.002`` as nested mappings. Raises RecipeError."""
    path, separator, value = text.partition("=")
    path = path.strip()
    if not separator or not all(path.split(".")):
        raise RecipeError(f"--set {text!r} is not of the form section.key=value.", hint="Example: --set optim.lr=0.002")
    try:
        found = parse_yaml(value, f"--set {text}")
    except CispbenchError as error:
        raise RecipeError(f"--set {text}: the value is not valid YAML.", hint="Quote it, or check brackets.") from error
    return with_current_names(nested(path, found), f"--set {text}")


def merge(target: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put ``changes`` into ``target``, section by section. Setting epochs removes iterations, and vice versa."""
    _put(target, changes)
    removed = _removed(changes)
    for path, section in optim_sections(target):
        for name in ("epochs", "iterations"):
            if isinstance(section, dict) and f"{path}.{name}" in removed:
                section.pop(name, None)


def _put(target: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _put(target[key], value)
        else:
            target[key] = copy.deepcopy(value)  # a later merge into ``target`` must not change the cached layer


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, by dotted path; lists are values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return a value by its dotted path as nested mappings: the opposite of ``flat``."""
    for key in reversed(path.split(".")):
        value = {key: value}
    made: dict[str, Any] = value
    return made


def _model_of(layers: Sequence[Mapping[str, Any]], setting: Setting) -> str | None:
    """Return the model that the layers name last. Conditions on the model are not known yet, and left out."""
    facts = {"dataset": setting.dataset, "setting": setting.name}
    named = [layer["model"] for layer in layers if "model" in layer and conditions_hold(layer, facts)]
    return named[-1] if named else None


def _asked_of_bases(overrides: Sequence[str]) -> dict[str, Any]:
    """Return what ``--set`` says of a wrapper's base."""
    asked: dict[str, Any] = {}
    for text in overrides:
        if text.strip().startswith("method.base"):
            _put(asked, parse_override(text))
    found = asked.get("method")
    return found if isinstance(found, dict) else {}


def _read_override(text: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    change = parse_override(text)
    if "model" in change:
        model_spec(str(change["model"]))  # an unknown name is an error of its own
        raise RecipeError(f"--set {text}: a model brings its family's recipe.", hint="Use --model instead.")
    path, _, word = (part.strip() for part in text.partition("="))
    kind = _type_of(path, kinds)
    # YAML reads ``true`` and ``1`` as no words, but an option may be a choice among words such as "true".
    if typing.get_origin(kind) is Literal and word in typing.get_args(kind):
        return nested(path, word)
    return change


def _kinds(classes: Sequence[type[Method]]) -> dict[str, Any]:
    """Return the type of each section and value of a recipe; ``classes``: the method, then its bases."""
    options = {".".join(["method", *["base_options"] * depth]): cls.Options for depth, cls in enumerate(classes)}
    return typing.get_type_hints(Recipe) | {"later": OptimRecipe} | options


def _check_paths(overrides: Sequence[str], kinds: Mapping[str, Any]) -> None:
    """Raise RecipeError for overrides whose path is in no recipe, with what may be meant in any of its sections."""
    inside = {
        section: [one.name for one in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
        for section, kind in kinds.items()
    }
    problems = []
    for text in overrides:
        path, separator, _ = text.partition("=")
        section, _, rest = current_path(path.strip()).partition(".")
        name = rest.partition(".")[0]
        if not separator or not section:  # of the wrong form, which ``parse_override`` says
            continue
        # Deeper parts of a path are read strictly later on.
        if section not in inside or (name and inside[section] and name not in inside[section]):
            problems.append(f"unknown key {path.strip()!r}. {_meant(section, name, inside)}")
    if problems:
        raise refusal("recipe", problems, RecipeError)


def current_path(path: str) -> str:
    """Return a dotted path with the names of today: ``optim.rates.encoder`` for ``optim.encoder_lr``."""
    return next(iter(flat(with_current_names(nested(path, None), path))))


def _check_steps(recipe: Recipe, setting: Setting) -> None:
    """Raise RecipeError for a section of a step that the setting does not have."""
    last = len(setting.steps) - 1
    for number in recipe.steps:
        if int(number) > last:
            raise RecipeError(
                f"recipe: steps.{number}: {setting.name} has the steps 0 to {last}.",
                hint="In a recipe file a layer may hold for some settings alone (setting: ...).",
            )


def _meant(section: str, name: str, inside: Mapping[str, Sequence[str]]) -> str:
    """Return ``Did you mean 'optim.lr'?`` for ``lr``, ``data.lr`` and ``optim.lrr``, else what there is."""
    here = closest(name, inside.get(section, ()))
    if here:
        return f"Did you mean '{section}.{here}'?"
    places = {name: name for name in inside}
    for other in sorted(inside, key=lambda other: other != "optim"):  # of several sections this is meant most often
        places = {found: f"{other}.{found}" for found in inside[other]} | places
    close = closest(name or section, places)
    return f"Did you mean {places[close]!r}?" if close else nearest(name, inside.get(section) or inside)


def _check_base(recipe: Recipe, classes: Sequence[type[Method]]) -> None:
    """Raise RecipeError where the merged layers name another base than the one whose layers they are."""
    options: Any = recipe.method
    for method, base in itertools.pairwise(classes):
        said = options.get("base", base.name)
        if said != base.name:
            raise RecipeError(
                f"the base of {method.name} is {said} or {base.name}, depending on the model or the base.",
                hint="A layer that names the base may have no conditions on either.",
            )
        options = options.get("base_options", {})


def _type_of(path: str, kinds: Mapping[str, Any]) -> Any:
    section, _, name = path.rpartition(".")
    owner = OptimRecipe if section.partition(".")[0] in ("steps", "phases") else kinds.get(section)
    if not section or not dataclasses.is_dataclass(owner):
        return kinds.get(path)
    return typing.get_type_hints(owner).get(name)


def _decided(changes: Mapping[str, Any]) -> list[str]:
    """Return the paths that a layer decides: those that it sets, and those that it removes."""
    return [*flat(changes), *_removed(changes)]


def _removed(changes: Mapping[str, Any]) -> list[str]:
    """Return what a layer removes: iterations where it sets epochs, epochs where it sets iterations."""
    return [
        f"{path}.{other}"
        for path, section in optim_sections(changes)
        for name, other in (("epochs", "iterations"), ("iterations", "epochs"))
        if isinstance(section, Mapping) and section.get(name) is not None and other not in section
    ]
