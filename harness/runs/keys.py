"""The content keys of steps and of tests: SHA-256 digests of all that decides a result.

``plan.py`` puts the parts together. A part that is newer than the first keys is left out where it says nothing new, so
that steps trained before it was known keep their keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cispbench.harness.distributed.division import Division
from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import VERSION as MODELS_VERSION
from cispbench.harness.models.catalogue import least_images, model_spec, trains_batch_norm
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.runs.declared import PlannedMethod
from cispbench.harness.runs.image_lists import ImageLists
from cispbench.harness.runs.method_code import is_built_in, method_code, with_bases
from cispbench.harness.step import TRAIN
from cispbench.harness.wrapper import Wrapper, overrides
from cispbench.splits.errors import RecipeError
from cispbench.splits.settings import Setting

TRAINING_VERSION = 3  # raised whenever the same plan would train to other weights


def digest_of(content: Any) -> str:
    """Return the SHA-256 of plain values, whatever the order of their names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def code_versions(method: Method) -> tuple[int, ...]:
    """Return what the keys of a plan say of the code: versions of the training, the models, the method and its base."""
    return TRAINING_VERSION, MODELS_VERSION, *(one.version for one in with_bases(method))


def method_part(method: Method) -> dict[str, Any]:
    """Return what a key says of a method, a wrapper's base included.

    The version of a method stands for its code where the method comes with cispbench. Of another method the digest of
    the code is a part as well (``method_code.py``): nobody has to remember to raise a version.
    """
    code = {} if is_built_in(type(method)) else {"code": method_code(type(method))}
    base = {"base": method_part(method.base)} if isinstance(method, Wrapper) else {}
    return {"name": method.name, "version": method.version, "options": asdict(method.options), **code, **base}


def model_part(recipe: Recipe) -> dict[str, Any]:
    """Return what a key says of the network; its version from 2 on."""
    version = model_spec(recipe.model).version
    return {"model": recipe.model, **({} if version == 1 else {"model_version": version})}


def optim_part(recipe: Recipe, step: int, phases: Sequence[str]) -> dict[str, Any]:
    """Return the recipes of a step's phases: that of "train" as ``optim``, those of others by name."""
    found = {name: recipe.phase(step, name).as_recorded() for name in phases}
    train = {"optim": found.pop(TRAIN)} if TRAIN in found else {}
    return {**train, **({"phases": found} if found else {})}


def division_part(
    recipe: Recipe, step: int, phases: Sequence[str], devices: int, micro_batch: int | None
) -> dict[str, Any]:
    """Return how many micro-batches a batch has, where batch norms see one at a time; of several phases by name.

    Raises RecipeError for fewer images at once than the network can be trained on.
    """
    found: dict[str, int] = {}
    for name in phases:
        phase, least = recipe.phase(step, name), least_images(recipe.model)
        division = Division(phase.batch, devices, micro_batch)
        if division.smallest_micro_batch < least:
            raise RecipeError(
                f"step {step} trains on {division.smallest_micro_batch} image at once (batch {division.batch}, "
                f"micro-batch {micro_batch or 'none'}), and the batch norms of {recipe.model} need {least}.",
                hint=f"Use a larger batch (--set {'later' if step else 'optim'}.batch={least}) or --micro-batch "
                f"{least}.",
            )
        if division.micro_batches > 1 and trains_batch_norm(recipe.model, recipe.fixed_norms(phase)):
            found[name] = division.micro_batches
    if not found:
        return {}
    return {"parts": found if tuple(phases) != (TRAIN,) else found[TRAIN]}


def companions_part(method: PlannedMethod, learnt: Setting, step: int, first: int, lists: ImageLists) -> dict[str, Any]:
    """Return the fingerprints of the maps that ``step`` is trained with; ``first``: the run's first step."""
    steps = method.map_steps(step, first)
    found = {one.name: lists.maps(one, learnt, steps).fingerprint for one in method.trained_with(step)}
    return {"companions": found} if found else {}


def evaluation_key(
    setting: Setting, recipe: Recipe, lists: ImageLists, method: Method, test_maps: Mapping[str, str]
) -> str:
    """Return the key of how steps are tested. ``test_maps``: fingerprints of the companions of the test images."""
    return digest_of(
        {
            "training": TRAINING_VERSION,
            "images": lists.test_digest(),
            "recipe": {**asdict(recipe.evaluation), "normalise": recipe.data.normalise},
            "precision": recipe.optim.precision,
            "order": setting.learning_order,
            # The method makes the prediction, where it is not the arg-max of the logits.
            **({"scores": method_part(method)} if overrides(method, "scores") else {}),
            **({"companions": dict(test_maps)} if test_maps else {}),
        }
    )
