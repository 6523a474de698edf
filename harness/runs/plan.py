"""The plan of a run: what each step is made of, and the content key that follows from it.

A key is the SHA-256 of all that decides a step's weights (``PlannedStep.made_of`` names each part): versions of the
code, fingerprint of the data, list of images, classes, model, pre-trained weights, the recipe's data section, its
optimiser section (``optim`` with the sections over it), method with options, seed, and the key of the step before. Two
runs that agree in these share the step; step 0 of methods with ``shared_base`` leaves the method out.
Exemplars are no part of it, since they follow from the rest; the maps of companions are, for methods that use them.
The version of a method stands for its code where the method comes with cispbench. Of other methods the digest of the
code is a part of the key besides (``method_code.py``): nobody has to remember to raise a version. The part of a wrapper
holds that of its base.
How a batch is divided is part of it only where that changes the result: for networks whose batch norms see one
micro-batch at a time, the number of micro-batches is (``parts``), which follows from the batch, ``--micro-batch`` and
``--devices``. ``apart`` (``sweep --no-share``) gives a run keys of its own. The key of a run is made of the key of its
last step and of how it is tested (by the method too, if it has ``scores`` of its own); records are looked up by both.

A plan holds names and values, no open files and no networks: it can be pickled, printed, and carried out elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cispbench.harness.data.exemplars import check_memory
from cispbench.harness.data.source import DataKind, Source
from cispbench.harness.distributed.division import Division
from cispbench.harness.method import Companion, Memory, Method
from cispbench.harness.models.catalogue import VERSION as MODELS_VERSION
from cispbench.harness.models.catalogue import least_images, model_spec, trains_batch_norm
from cispbench.harness.recipes.fields import OptimRecipe, Recipe
from cispbench.harness.recipes.selectors import check_selectors
from cispbench.harness.runs.declared import check_declared
from cispbench.harness.runs.image_lists import ImageLists
from cispbench.harness.runs.imported import ImportedStep
from cispbench.harness.runs.method_code import code_of, is_built_in, method_code, with_bases
from cispbench.harness.wrapper import Wrapper, overrides
from cispbench.splits.errors import MethodError, RecipeError, nearest
from cispbench.splits.settings import Setting

TRAIN = "train"  # the phase of a method that has no others
TRAINING_VERSION = 2  # raised whenever the same plan would train to other weights


def code_versions(method: Method) -> tuple[int, ...]:
    """Return what the keys of a plan say of the code: versions of the training, the models, the method and its base."""
    return TRAINING_VERSION, MODELS_VERSION, *(one.version for one in with_bases(method))


@dataclass(frozen=True)
class PlannedMethod:
    """The method by its entry point's name, with its version, all its options, and what it says of its steps.

    ``code``: the digest of its code, or UNKNOWN (see ``method_code.py``). ``built_in``: it comes with cispbench.
    ``companions`` and ``memory``: what it declares.
    """

    name: str
    version: int
    options: Mapping[str, Any]
    joint: bool
    shared_base: bool
    code: str
    built_in: bool
    companions: tuple[Companion, ...] = ()
    memory: Memory | None = None


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
    name.
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
        return _digest_of(
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
    if phase.iterations is not None:
        return phase.iterations
    return max(1, math.ceil((phase.epochs or 0) * max(1, images // phase.batch)))


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
    worker = _planned_method(method, learnt, recipe)
    lists = lists or ImageLists(source)
    own = {} if share else {"apart": [method.name, setting.name]}
    data_recipe = recipe.as_recorded()["data"]
    phases = _phases(method, learnt, recipe)
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
            "model": recipe.model,
            "weights": weights.sha256,
            "freeze_batch_norm": recipe.freeze_batch_norm,
            "data_recipe": data_recipe,
            **_optim_part(recipe, step, phases[step]),
            "method": None if step == 0 and method.shared_base else _method_part(method),
            "seed": seed,
            "previous": previous,
            **own,
            **_model_version(recipe.model),
            **_parts(recipe, step, phases[step], devices, micro_batch),
            **_companions(worker, learnt, map_steps(worker, step, first), lists),
        }
        steps.append(PlannedStep(step, images, list_sha256, _digest_of(made_of), previous, made_of, phases[step]))
    test_maps = {one.name: lists.test_maps(one).fingerprint for one in worker.companions if one.at_test}
    return RunPlan(
        setting=setting, learnt=learnt, method=worker, recipe=recipe, profile=profile, seed=seed,
        data=PlannedData(source.kind, source.fingerprint, data_root), weights=weights, steps=tuple(steps),
        evaluation_key=evaluation_key(setting, recipe, lists, method, test_maps),
        versions=code_versions(method), devices=devices, micro_batch=micro_batch, test_maps=test_maps,
    )  # fmt: skip


def _scores(method: Method) -> dict[str, Any]:
    """Return what makes the prediction, where it is not the arg-max of the logits."""
    return {"scores": _method_part(method)} if overrides(method, "scores") else {}


def evaluation_key(
    setting: Setting, recipe: Recipe, lists: ImageLists, method: Method, test_maps: Mapping[str, str]
) -> str:
    """Return the key of how steps are tested. ``test_maps``: fingerprints of the companions of the test images."""
    return _digest_of(
        {
            "training": TRAINING_VERSION,
            "images": lists.test_digest(),
            "recipe": {**asdict(recipe.evaluation), "normalise": recipe.data.normalise},
            "precision": recipe.optim.precision,
            "order": setting.learning_order,
            **_scores(method),
            **({"companions": dict(test_maps)} if test_maps else {}),
        }
    )


def _phases(method: Method, learnt: Setting, recipe: Recipe) -> list[tuple[str, ...]]:
    """Return the names of each step's phases; those of a shared step 0, which the harness trains, are not asked for.

    Raises MethodError for a step without a phase, or with one twice; RecipeError for a phase that no step has, and for
    a selector that names nothing of the network.
    """
    found = [
        (TRAIN,) if step == 0 and method.shared_base else tuple(method.phases(learnt, step))
        for step in range(len(learnt.steps))
    ]
    for step, names in enumerate(found):
        if not names or len(set(names)) < len(names):
            raise MethodError(f"{method.name} has the phases {names} at step {step}: at least one, and each once.")
    known = dict.fromkeys(name for names in found for name in names)
    for name in recipe.phases:
        if name not in known:
            raise RecipeError(f"recipe: phases.{name}: {method.name} has no such phase.", hint=nearest(name, known))
    # Now, not when the step is trained: a slip in a later step would be found hours afterwards.
    roles: list[str] = []
    for step, names in enumerate(found):
        roles += [group.role for group in method.layout(learnt, step)]
        for name in names:
            check_selectors(recipe.phase(step, name), step, roles, model_spec(recipe.model).sections)
    return found


def _optim_part(recipe: Recipe, step: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the recipes of a step's phases: that of "train" as ``optim``, those of others by name."""
    found = {name: recipe.phase(step, name).as_recorded() for name in names}
    train = {"optim": found.pop(TRAIN)} if TRAIN in found else {}
    return {**train, **({"phases": found} if found else {})}


def _planned_method(method: Method, learnt: Setting, recipe: Recipe) -> PlannedMethod:
    """Return the method with what it declares. Raises MethodError for a memory that cannot be used."""
    memory = method.memory()
    if memory is not None:
        later = range(1, len(learnt.steps))
        batches = {recipe.phase(step, name).batch for step in later for name in method.phases(learnt, step)}
        for batch in sorted(batches):
            check_memory(method.name, memory, batch)
    return PlannedMethod(
        method.name, method.version, asdict(method.options), method.joint, method.shared_base, code_of(method),
        is_built_in(type(method)), tuple(method.companions(learnt)), memory,
    )  # fmt: skip


def _companions(method: PlannedMethod, learnt: Setting, steps: Sequence[int], lists: ImageLists) -> dict[str, Any]:
    """Return the fingerprints of the maps of ``steps`` that the last of them is trained with, where there are any."""
    found = {one.name: lists.maps(one, learnt, steps).fingerprint for one in trained_with(method, steps[-1])}
    return {"companions": found} if found else {}


def trained_with(method: PlannedMethod, step: int) -> tuple[Companion, ...]:
    """Return the companions that a step is trained with: none for a base that other methods share."""
    return () if step == 0 and method.shared_base else method.companions


def map_steps(method: PlannedMethod, step: int, first: int) -> tuple[int, ...]:
    """Return the steps whose images ``step`` needs the maps of: with a memory all from ``first`` on, else its own."""
    return tuple(range(first, step + 1)) if method.memory else (step,)


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


def _parts(recipe: Recipe, step: int, names: tuple[str, ...], devices: int, micro_batch: int | None) -> dict[str, Any]:
    """Return into how many parts a batch is cut, where that decides what batch norms see; of several phases by name.

    Raises RecipeError for fewer images at once than the network can be trained on.
    """
    found: dict[str, int] = {}
    for name in names:
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
    if names == (TRAIN,):
        return {"parts": found[TRAIN]} if found else {}
    return {"parts": found} if found else {}


def _model_version(model: str) -> dict[str, int]:
    """Return the version of a network, which is part of the key from 2 on: keys were made before there was one."""
    version = model_spec(model).version
    return {} if version == 1 else {"model_version": version}


def _method_part(method: Method) -> dict[str, Any]:
    code = {} if is_built_in(type(method)) else {"code": method_code(type(method))}
    base = {"base": _method_part(method.base)} if isinstance(method, Wrapper) else {}
    return {"name": method.name, "version": method.version, "options": asdict(method.options), **code, **base}


def _digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
