"""The plan of a run: what each step is made of, and the content key that follows from it.

A key is the digest of all that decides a step's weights; ``plan_run`` names each part, ``keys.py`` says how it is
written. Two runs that agree in all parts share the step. Step 0 of methods with ``shared_base`` leaves the method out.
Exemplars are no part, since they follow from the rest; the maps of companions are, for methods that use them. How a
batch is divided is a part only where that changes the result. ``apart`` (``sweep --no-share``) gives a run keys of its
own. The key of a run is made of the key of its last step and of how it is tested (by the method too, if it has
``scores`` of its own); records are looked up by both.

A plan holds names and values, no open files and no networks: it can be pickled, printed, and carried out elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cispbench.harness.data.source import DataKind, Source
from cispbench.harness.distributed.division import Division
from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import VERSION as MODELS_VERSION
from cispbench.harness.recipes.fields import OptimRecipe, Recipe
from cispbench.harness.runs.declared import PlannedMethod, check_declared, plan_method, plan_phases
from cispbench.harness.runs.image_lists import ImageLists
from cispbench.harness.runs.imported import ImportedStep
from cispbench.harness.runs.keys import (
    TRAINING_VERSION,
    code_versions,
    companions_part,
    digest_of,
    division_part,
    evaluation_key,
    method_part,
    model_part,
    optim_part,
)
from cispbench.harness.step import TRAIN
from cispbench.splits.settings import Setting


@dataclass(frozen=True)
class PlannedData:
    """The data: ``root`` is the folder that the data set lies below, None for built-in scenes."""

    kind: DataKind
    fingerprint: str
    root: Path | None


@dataclass(frozen=True)
class PlannedWeights:
    """The pre-trained weights: what they were ``asked`` for by (None: an imported step brings all weights).

    ``named``: the user asked for them, which weights without a published checksum need. ``sha256``: of their file,
    None for a random start.
    """

    asked: str | None
    named: bool
    sha256: str | None


NO_WEIGHTS = PlannedWeights("none", False, None)


@dataclass(frozen=True)
class PlannedStep:
    """One step: the images it trains on and its content key.

    ``made_of``: what the key is the digest of, by name; empty for an imported step. ``phases``: see ``Method.phases``.
    """

    step: int
    images: tuple[str, ...]
    list_sha256: str
    key: str
    previous_key: str | None
    made_of: Mapping[str, Any]
    phases: tuple[str, ...] = (TRAIN,)


@dataclass(frozen=True)
class RunPlan:
    """A run before it starts.

    ``learnt`` is the setting as the method learns it: one step with all classes for a joint method, else ``setting``.
    ``steps`` begins with step 0, or with an imported step from which the run goes on. ``versions``: those of the
    training, the models, the method and its base. ``test_maps``: fingerprints of the companions of the test images, by
    name. ``test_images``: how many there are.
    """

    setting: Setting
    learnt: Setting
    method: PlannedMethod
    recipe: Recipe
    profile: str
    seed: int
    data: PlannedData
    weights: PlannedWeights
    steps: tuple[PlannedStep, ...]
    evaluation_key: str
    versions: tuple[int, ...]
    devices: int = 1
    micro_batch: int | None = None
    test_maps: Mapping[str, str] = field(default_factory=dict)
    test_images: int = 0

    def planned(self, step: int) -> PlannedStep:
        """Return the plan of ``step``, by its index in the setting."""
        return self.steps[step - self.steps[0].step]

    def epoch_images(self, step: int) -> int:
        """Return how many images an epoch of ``step`` has at most: its own, and the exemplars that it may append.

        Where a method chooses fewer exemplars than it may keep, the training is shorter than planned.
        """
        memory, own = self.method.memory, len(self.planned(step).images)
        if memory is None or memory.use != "append":
            return own
        earlier = sum(len(planned.images) for planned in self.steps if planned.step < step)
        return own + min(memory.size, earlier)

    @property
    def run_key(self) -> str:
        """The key of the last step together with how it is tested: what the whole run stands for."""
        return digest_of(
            {
                "last": self.steps[-1].key,
                "evaluation": self.evaluation_key,
                "setting": self.setting.name,
                "method": self.method.name,
                "profile": self.profile,
            }
        )


def step_iterations(phase: OptimRecipe, images: int) -> int:
    """Return the optimisation steps of a training on so many images: whole batches alone, at least one an epoch."""
    return phase.length(max(1, images // phase.batch))


def plan_run(
    *,
    setting: Setting,
    method: Method,
    recipe: Recipe,
    profile: str,
    seed: int,
    source: Source,
    weights: PlannedWeights = NO_WEIGHTS,
    start: ImportedStep | None = None,
    lists: ImageLists | None = None,
    data_root: Path | None = None,
    share: bool = True,
    devices: int = 1,
    micro_batch: int | None = None,
) -> RunPlan:
    """Select the images of every step and derive every key.

    ``start``: a step trained elsewhere, which the run takes as it is; those before it are left out. ``lists``: the
    source's lists, where several runs are planned. ``share``: False for keys of this run's own, so that no other method
    or setting shares a step with it.

    Raises DataError for a step without images, UsageError for a batch that cannot be divided or must not be for this
    method, MethodError for a method that contradicts itself, RecipeError for a batch that is too small for the network.
    """
    learnt = setting.joint() if method.joint else setting
    check_declared(method, learnt, devices, micro_batch)
    declared = plan_method(method, learnt, recipe)
    lists = lists or ImageLists(source)
    own = {} if share else {"apart": [method.name, setting.name]}
    data_recipe = recipe.as_recorded()["data"]
    phases = plan_phases(method, learnt, recipe)
    steps: list[PlannedStep] = []
    first = start.step if start else 0
    for step in range(first, len(learnt.steps)):
        images, list_sha256 = lists.train(learnt, step)
        previous = steps[-1].key if steps else None
        if start and step == start.step:
            steps.append(PlannedStep(step, images, list_sha256, start.key, None, {}))
            continue
        made_of = {
            "training": TRAINING_VERSION,
            "models": MODELS_VERSION,
            "data": source.fingerprint,
            "images": list_sha256,
            "classes": learnt.steps[step].classes,
            **model_part(recipe),
            "weights": weights.sha256,
            "freeze_batch_norm": recipe.freeze_batch_norm,
            "data_recipe": data_recipe,
            **optim_part(recipe, step, phases[step]),
            "method": method_part(method) if declared.trains(step) else None,
            "seed": seed,
            "previous": previous,
            **own,
            **division_part(recipe, step, phases[step], devices, micro_batch),
            **companions_part(declared, learnt, step, first, lists),
        }
        steps.append(PlannedStep(step, images, list_sha256, digest_of(made_of), previous, made_of, phases[step]))
    test_maps = {one.name: lists.test_maps(one).fingerprint for one in declared.companions if one.at_test}
    return RunPlan(
        setting=setting, learnt=learnt, method=declared, recipe=recipe, profile=profile, seed=seed,
        data=PlannedData(source.kind, source.fingerprint, data_root), weights=weights, steps=tuple(steps),
        evaluation_key=evaluation_key(setting, recipe, lists, method, test_maps),
        versions=code_versions(method), devices=devices, micro_batch=micro_batch, test_maps=test_maps,
        test_images=len(source.ids("val")),
    )  # fmt: skip


def parts_note(plan: RunPlan) -> str | None:
    """Say that the micro-batch changes the plan's result, None where it does not."""
    recipe = plan.recipe
    cut = [planned.step for planned in plan.steps if "parts" in planned.made_of]
    if not cut:
        return None
    phases = (recipe.phase(cut[0], name) for name in plan.planned(cut[0]).phases)
    size = min(Division(phase.batch, plan.devices, plan.micro_batch).smallest_micro_batch for phase in phases)
    return (
        f"--micro-batch {plan.micro_batch}: the batch norms of {recipe.model} see parts of {size} at once, not the "
        "whole batch; the result is another one, and kept apart by its key"
    )
