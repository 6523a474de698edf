"""The plan of a run: what each step is made of, and the content key that follows from it.

A key hashes all that decides a step's weights: the data (fingerprint and list of images), the labels, model and
pre-trained weights, the recipe's training part, the method with its options, the seed, and the step before. Two runs
that agree in these share the step; step 0 of methods with ``shared_base`` leaves the method out.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from cispbench.harness.data.source import Source
from cispbench.harness.imported import ImportedStep
from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import VERSION as MODELS_VERSION
from cispbench.harness.recipe import Recipe
from cispbench.splits.errors import DataError
from cispbench.splits.selection import digest, select_images
from cispbench.splits.settings import Setting

TRAINING_VERSION = 1  # raised whenever the same plan would train to other weights


@dataclass(frozen=True)
class PlannedStep:
    """One step: the images it trains on and its content key."""

    step: int
    images: tuple[str, ...]
    list_sha256: str
    key: str
    previous_key: str | None


@dataclass(frozen=True)
class RunPlan:
    """A run before it starts. ``trained`` is the setting as the method learns it (one step for a joint method).

    ``steps`` begins with step 0, or with an imported step from which the run goes on.
    """

    setting: Setting
    trained: Setting
    method: Method
    recipe: Recipe
    profile: str
    seed: int
    source: Source
    weights_sha256: str | None
    steps: tuple[PlannedStep, ...]
    evaluation_key: str

    def planned(self, step: int) -> PlannedStep:
        """Return the plan of ``step``, by its index in the setting."""
        return self.steps[step - self.steps[0].step]

    @property
    def run_key(self) -> str:
        """The key of the last step together with how it is tested: what the whole run stands for."""
        return _hash(
            {
                "last": self.steps[-1].key,
                "evaluation": self.evaluation_key,
                "setting": self.setting.name,
                "method": self.method.name,
                "profile": self.profile,
            }
        )


def plan_run(
    *,
    setting: Setting,
    method: Method,
    recipe: Recipe,
    profile: str,
    seed: int,
    source: Source,
    weights_sha256: str | None,
    start: ImportedStep | None = None,
) -> RunPlan:
    """Select every step's images and derive every key. Raises DataError for a step without images.

    ``start``: a step trained elsewhere, which the run takes as it is; those before it are left out.
    """
    trained = setting.joint() if method.joint else setting
    presence = source.presence("train")
    steps: list[PlannedStep] = []
    for step in range(start.step if start else 0, len(trained.steps)):
        images = select_images(presence, trained, step)
        if not images:
            classes = ", ".join(map(str, trained.steps[step].classes))
            raise DataError(
                f"step {step} of {setting.name} has no training image: none of {len(presence)} holds the classes "
                f"{classes} (in the scenario {setting.scenario}).",
                hint="Use more data, or another task.",
            )
        previous = steps[-1].key if steps else None
        list_sha256 = digest(images)
        if start and step == start.step:
            steps.append(PlannedStep(step, tuple(images), list_sha256, start.key, None))
            continue
        content = {
            "training": TRAINING_VERSION,
            "models": MODELS_VERSION,
            "data": source.fingerprint,
            "images": list_sha256,
            "classes": trained.steps[step].classes,
            "model": recipe.model,
            "weights": weights_sha256,
            "freeze_batch_norm": recipe.freeze_batch_norm,
            "data_recipe": asdict(recipe.data),
            "optim": asdict(recipe.phase(step)),
            "method": _method_part(method, step),
            "seed": seed,
            "previous": previous,
        }
        steps.append(PlannedStep(step, tuple(images), list_sha256, _hash(content), previous))
    evaluation = {
        "training": TRAINING_VERSION,
        "images": digest(source.ids("val")),
        "recipe": {**asdict(recipe.evaluation), "normalise": recipe.data.normalise},
        "precision": recipe.optim.precision,
        "order": setting.learning_order,
    }
    return RunPlan(
        setting, trained, method, recipe, profile, seed, source, weights_sha256, tuple(steps), _hash(evaluation)
    )


def _method_part(method: Method, step: int) -> dict[str, Any] | None:
    if step == 0 and method.shared_base:
        return None
    return {"name": method.name, "version": method.version, "options": asdict(method.options)}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
