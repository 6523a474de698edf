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

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cispbench.harness.method import Method
from cispbench.harness.recipes.fields import Recipe, load_strict
from cispbench.harness.recipes.merging import decided, flat, merge
from cispbench.harness.recipes.overrides import asked_of_bases, check_paths, kinds_of, read_override
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
from cispbench.harness.step import TRAIN
from cispbench.splits.errors import RecipeError, UsageError, nearest
from cispbench.splits.settings import Setting

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
    own, classes = layers_with_bases(method, profile, setting, asked_of_bases(overrides))
    kinds = kinds_of(classes)
    check_paths(overrides, kinds)
    layers = read_layers(SHARED_FILE, profile, method.Options) + own
    chosen = model or _model_of(layers, setting)
    if chosen is None:
        raise RecipeError(
            f"no recipe names a model for {method.name} under the profile {profile}.", hint="Use --model."
        )
    facts = recipe_facts(setting, chosen)
    changes = [(changes_of(layer), str(layer["source"])) for layer in layers if conditions_hold(layer, facts)]
    changes += [({"model": model}, "--model")] if model is not None else []
    changes += [(read_override(text, kinds), "--set") for text in overrides]
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for change, source in changes:
        merge(merged, change)
        sources |= dict.fromkeys(decided(change), source)
    recipe = build_recipe(merged | {"model": chosen})
    _check_steps(recipe, setting)
    _check_base(recipe, classes)
    values = flat(with_all_options(recipe, method))
    return SourcedRecipe(recipe, values, {path: sources.get(path, DEFAULT) for path in values})


def build_recipe(merged: Mapping[str, Any]) -> Recipe:
    """Build a recipe from merged layers and check it, later steps and phases too. Raises RecipeError."""
    recipe = load_strict(Recipe, merged, "recipe")
    for step in (1, *map(int, recipe.steps)):
        for name in (TRAIN, *recipe.phases):
            recipe.phase(step, name)
    return recipe


def with_all_options(recipe: Recipe, method: type[Method]) -> dict[str, Any]:
    """Return the recipe as plain values, with the defaults of those method's options that the recipe does not set.

    Raises RecipeError for an option that the method does not have, or whose value is wrong.
    """
    return dataclasses.replace(recipe, method=dataclasses.asdict(read_options(method, recipe.method))).as_dict()


def _model_of(layers: Sequence[Mapping[str, Any]], setting: Setting) -> str | None:
    """Return the model that the layers name last. Conditions on the model are not known yet, and left out."""
    facts = {"dataset": setting.dataset, "setting": setting.name}
    named = [layer["model"] for layer in layers if "model" in layer and conditions_hold(layer, facts)]
    return named[-1] if named else None


def _check_steps(recipe: Recipe, setting: Setting) -> None:
    """Raise RecipeError for a section of a step that the setting does not have."""
    last = len(setting.steps) - 1
    for number in recipe.steps:
        if int(number) > last:
            raise RecipeError(
                f"recipe: steps.{number}: {setting.name} has the steps 0 to {last}.",
                hint="In a recipe file a layer may hold for some settings alone (setting: ...).",
            )


def _check_base(recipe: Recipe, classes: Sequence[type[Method]]) -> None:
    """Raise RecipeError where the merged layers name another base than the one whose layers they are."""
    options = recipe.method
    for method, base in itertools.pairwise(classes):
        said = options.get("base", base.name) if isinstance(options, Mapping) else base.name  # else refused as a type
        if said != base.name:
            raise RecipeError(
                f"the base of {method.name} is {said} or {base.name}, depending on the model or the base.",
                hint="A layer that names the base may have no conditions on either.",
            )
        options = options.get("base_options", {}) if isinstance(options, Mapping) else {}
