"""What a run is fed with: the data of a profile, and a recipe that fits the weights it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cispbench.harness.data.source import Source, find_source
from cispbench.harness.data.synthetic import synthetic_source
from cispbench.harness.machine.progress import ProgressView, index_progress
from cispbench.harness.models.catalogue import model_spec
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.recipes.layers import parse_override
from cispbench.harness.recipes.recipe_files import PROFILES
from cispbench.harness.runs.weights_choice import WeightsChoice
from cispbench.splits.errors import UsageError, nearest
from cispbench.splits.settings import Setting


def open_source(setting: Setting, profile: str, data_root: Path | None, cache: Path, view: ProgressView) -> Source:
    """Return the data of a profile: synthetic scenes for ``quick``, the data set's folder for the others."""
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}.", hint=nearest(profile, PROFILES))
    if profile != "quick":
        return find_source(setting.dataset, data_root, cache, index_progress(view))
    if data_root is not None:
        raise UsageError(f"the profile quick draws its own scenes; --data-root {data_root} would be ignored.",
                         hint="Use --profile mini or paper, or leave --data-root out.")  # fmt: skip
    return synthetic_source(setting.dataset)


def fit_weights(
    recipe: Recipe, choice: WeightsChoice, profile: str, overrides: Sequence[str], view: ProgressView
) -> Recipe:
    """Fit the recipe to the weights: their normalisation, and no frozen norms without pre-trained statistics.

    Under the profile ``paper`` the recipe's own weights keep its normalisation, whatever they were trained with.
    """
    own = model_spec(recipe.model).weights if recipe.weights == "pretrained" else recipe.weights
    published = profile == "paper" and choice.label == own
    recipe = replace(recipe, weights=choice.label)
    if choice.load is None:
        if recipe.freeze_batch_norm:
            view.note("random start: the encoder's batch norms are trained, not frozen")
        return replace(recipe, freeze_batch_norm=False)
    if published or any("normalise" in parse_override(text).get("data", {}) for text in overrides):
        return recipe
    if choice.normalise is None:
        view.note(f"weights {choice.label}: unknown here, images are normalised as data.normalise says: "
                  f"{recipe.data.normalise}")  # fmt: skip
        return recipe
    if profile == "paper" and choice.normalise != recipe.data.normalise:
        view.note(f"weights {choice.label}: images are normalised as for their training ({choice.normalise}), where "
                  f"the recipe says {recipe.data.normalise}")  # fmt: skip
    return replace(recipe, data=replace(recipe.data, normalise=choice.normalise))
