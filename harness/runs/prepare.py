"""The one road from what was asked for to a plan: ``run``, ``sweep`` and ``show`` all take it.

The order of the steps is the order in which mistakes are reported: names first (setting, method, profile, recipe),
then whether method, recipe, network and setting fit each other, then the name of the weights, and only then what takes
time: reading the masks of the data set, and fetching weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from cispbench.harness.data.source import Source, locate, root_in_force
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import lacking, model_spec
from cispbench.harness.models.weights_table import load_table
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.recipes.layers import SourcedRecipe, resolve_recipe
from cispbench.harness.recipes.overrides import parse_override
from cispbench.harness.registry import load_method, make_method
from cispbench.harness.runs.declared import check_declared, plan_method, plan_phases
from cispbench.harness.runs.image_lists import ImageLists
from cispbench.harness.runs.imported import IMPORTED, ImportedStep, find_imported
from cispbench.harness.runs.inputs import open_source
from cispbench.harness.runs.keys import division_part
from cispbench.harness.runs.plan import PlannedWeights, RunPlan, parts_note, plan_run
from cispbench.harness.runs.published import PublishedLists, PublishedSource
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.runs.weights_choice import WeightsChoice, check_weights, choose_weights
from cispbench.splits.errors import SettingError, UsageError
from cispbench.splits.settings import Setting, parse_setting

LOST_PARTITION = "the partition was drawn with a seed that is lost, and its image lists are not shipped"


class UnservedError(UsageError):
    """A method that declines a setting or a model; ``reason`` in its own words."""

    def __init__(self, method: str, setting: str, model: str, reason: str) -> None:
        super().__init__(f"{method} cannot run {setting} with {model}: {reason}")
        self.reason = reason


class PartitionedError(SettingError):
    """A setting of MiB's random partition, which cannot be made again."""

    reason = LOST_PARTITION

    def __init__(self, setting: str) -> None:
        super().__init__(
            f"{setting}: {LOST_PARTITION}.", hint=f"{setting}-s0 is drawn with seed 0; or use overlapped or disjoint."
        )


@dataclass(frozen=True)
class Prepared:
    """What runs that differ by their seeds alone have in common."""

    setting: Setting
    method: Method
    profile: str
    recipe: Recipe
    weights: PlannedWeights
    start: ImportedStep | None


class Preparer:
    """Makes plans. What several requests have in common (data, recipes, weights) is read once.

    ``steps``: the store that holds imported steps, fetched weights and the index of the data. ``plan_only``: nothing
    will be trained; published lists then stand for data that are not found, and the checksums of the table for weights
    that are not fetched yet. ``in_turn``: makes a context that one of several processes enters at a time, the first one
    first, so that the others find what it has read and fetched.
    """

    def __init__(
        self, steps: StepStore, view: ProgressView, *, plan_only: bool = False,
        in_turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:  # fmt: skip
        self._steps, self._view, self._plan_only, self._in_turn = steps, view, plan_only, in_turn
        self._sources: dict[tuple[str, str, Path | None], tuple[Source, ImageLists]] = {}
        self._choices: dict[tuple[str, str, bool], WeightsChoice] = {}
        self._prepared: dict[RunRequest, Prepared] = {}

    def prepare(self, request: RunRequest) -> RunPlan:
        """Return the plan of a run.

        Raises UnservedError for a method that declines, PartitionedError, UsageError for a name or a value that does
        not exist or does not fit, and DataError, WeightsError or StoreError for what cannot be had.
        """
        alike = replace(request, seed=0)
        if alike not in self._prepared:
            self._prepared[alike] = self._prepare(request)
        common = self._prepared[alike]
        source, lists = self._open(common.setting, common.profile, request.data_root)
        plan = plan_run(
            setting=common.setting, method=common.method, recipe=common.recipe, profile=common.profile,
            seed=request.seed, source=source, lists=lists, weights=common.weights,
            data_root=None if common.profile == "quick" else root_in_force(request.data_root),
            start=common.start, share=request.share, devices=request.devices or 1, micro_batch=request.micro_batch,
        )  # fmt: skip
        changed = parts_note(plan)
        if changed is not None:
            self._view.note(changed)
        return plan

    def source(self, plan: RunPlan) -> Source:
        """Return the data of a plan that this object has made."""
        opened = (source for source, _ in self._sources.values())
        return next(source for source in opened if source.fingerprint == plan.data.fingerprint)

    def without_data(self) -> tuple[str, ...]:
        """Return the data sets that published lists stand for."""
        opened = (source for source, _ in self._sources.values())
        return tuple(source.dataset for source in opened if isinstance(source, PublishedSource))

    def _prepare(self, request: RunRequest) -> Prepared:
        setting = served_setting(request.setting)
        method, profile, sourced = _method_and_recipe(request, setting)
        recipe = sourced.recipe
        start = _start(request, self._steps, setting, method, recipe)
        _check_batches(request, setting, method, recipe, first=0 if start is None else start.step + 1)
        if start is not None:
            with self._in_turn():
                self._open(setting, profile, request.data_root)
            recipe = replace(recipe, weights=f"{IMPORTED}{start.code}")
            return Prepared(setting, method, profile, recipe, PlannedWeights(None, False, start.sha256), start)
        asked, named = request.weights or recipe.weights, request.weights is not None
        check_weights(asked, recipe.model)
        with self._in_turn():
            self._open(setting, profile, request.data_root)
            choice = self._choose(asked, recipe.model, named)
        recipe = fit_weights(recipe, choice, profile, request.overrides, self._view.note)
        return Prepared(setting, method, profile, recipe, PlannedWeights(asked, named, choice.sha256), None)

    def _open(self, setting: Setting, profile: str, data_root: Path | None) -> tuple[Source, ImageLists]:
        key = (setting.dataset, profile, data_root)
        if key not in self._sources:
            if profile == "paper" and self._plan_only and locate(setting.dataset, data_root) is None:
                published = PublishedSource(setting.dataset)
                self._sources[key] = published, PublishedLists(published)
            else:
                source = open_source(setting.dataset, profile, data_root, self._steps.root, self._view)
                self._sources[key] = source, ImageLists(source)
        return self._sources[key]

    def _choose(self, asked: str | None, model: str, named: bool) -> WeightsChoice:
        """Choose the weights. A plan believes the table of those that are not fetched yet."""
        name, folder = check_weights(asked, model), self._steps.root / "weights"
        key = (name, model, named)
        if key not in self._choices:
            entry = load_table().get(name)
            if self._plan_only and entry is not None and not (folder / entry.file_name).is_file():
                self._view.note(f"the weights {name} are not here yet; a training fetches them")
                sha256 = entry.sha256 or f"{entry.digits}..."
                self._choices[key] = WeightsChoice(name, sha256, entry.normalise, fetched=False)
            else:
                self._choices[key] = choose_weights(asked, model, folder, named=named)
        return self._choices[key]


def served_setting(name: str) -> Setting:
    """Return a setting by its name. Raises SettingError for an unknown one and PartitionedError."""
    setting = parse_setting(name)
    if setting.given_lists:
        raise PartitionedError(setting.name)
    return setting


def chosen_profile(request: RunRequest, setting: Setting) -> str:
    """Return the profile that was asked for, or the one that fits: quick where the data set is not found."""
    if request.profile is not None:
        return request.profile
    missing = request.data_root is None and locate(setting.dataset, None) is None
    return "quick" if missing else "paper"


def recipe_with_sources(request: RunRequest) -> SourcedRecipe:
    """Return the recipe as it would run, with the source of every value: what ``cispbench show`` prints.

    Nothing is fitted to data or weights yet. Raises what ``Preparer.prepare`` raises before it looks for weights and
    data; settings whose image lists are lost are shown.
    """
    setting = parse_setting(request.setting)
    method, _, sourced = _method_and_recipe(request, setting)
    _check_batches(request, setting, method, sourced.recipe)
    return sourced


def _method_and_recipe(request: RunRequest, setting: Setting) -> tuple[Method, str, SourcedRecipe]:
    """Return the method, the profile and the recipe, which fit each other, the setting and the devices asked for."""
    cls, profile = load_method(request.method), chosen_profile(request, setting)
    sourced = resolve_recipe(cls, setting, profile, request.model, request.overrides)
    recipe = sourced.recipe
    method = make_method(cls, recipe.method)
    reason = lacking(recipe.model, method.needs) or method.unsupported(setting, recipe.model)
    if reason is not None:
        raise UnservedError(request.method, setting.name, recipe.model, reason)
    learnt = setting.joint() if method.joint else setting
    # The plan checks all this again; here it is told before data are read, which can take minutes.
    check_declared(method, learnt, request.devices or 1, request.micro_batch)
    plan_method(method, learnt, recipe)
    plan_phases(method, learnt, recipe)
    return method, profile, sourced


def _check_batches(request: RunRequest, setting: Setting, method: Method, recipe: Recipe, first: int = 0) -> None:
    """Raise RecipeError where a step from ``first`` on has batches that are too small for the network."""
    phases = plan_phases(method, setting.joint() if method.joint else setting, recipe)
    for step in range(first, len(phases)):
        division_part(recipe, step, phases[step], request.devices or 1, request.micro_batch)


def _start(
    request: RunRequest, steps: StepStore, setting: Setting, method: Method, recipe: Recipe
) -> ImportedStep | None:
    """Return the imported step that the run goes on from. Raises UsageError where the two do not fit."""
    if request.start_from is None:
        return None
    if request.weights is not None:
        raise UsageError(
            f"--start-from brings all weights; --weights {request.weights} would be ignored.", hint="Leave it out."
        )
    if method.joint:
        raise UsageError(f"{method.name} learns all classes in a single step and goes on from none.")
    start = find_imported(steps, request.start_from)
    reason = start.unfit(setting, recipe.model, recipe.data.crop)
    if reason is not None:
        raise UsageError(f"the run cannot go on from the imported step {start.key[:10]}: {reason}.")
    return start


def fit_weights(
    recipe: Recipe, choice: WeightsChoice, profile: str, overrides: Sequence[str], note: Callable[[str], None]
) -> Recipe:
    """Fit the recipe to the weights: their normalisation, and no frozen norms without pre-trained statistics.

    Under the profile ``paper`` the recipe's own weights keep its normalisation, whatever they were trained with.
    ``note`` is told what differs from the recipe.
    """
    own = model_spec(recipe.model).weights if recipe.weights == "pretrained" else recipe.weights
    published = profile == "paper" and choice.label == own
    recipe = replace(recipe, weights=choice.label)
    if choice.random:
        if recipe.freeze_batch_norm:
            note("random start: the encoder's batch norms are trained, not frozen")
        return replace(recipe, freeze_batch_norm=False)
    if published or any("normalise" in parse_override(text).get("data", {}) for text in overrides):
        return recipe
    if choice.normalise is None:
        note(f"weights {choice.label}: unknown here, images are normalised as data.normalise says: "
             f"{recipe.data.normalise}")  # fmt: skip
        return recipe
    if profile == "paper" and choice.normalise != recipe.data.normalise:
        note(f"weights {choice.label}: images are normalised as for their training ({choice.normalise}), where "
             f"the recipe says {recipe.data.normalise}")  # fmt: skip
    return replace(recipe, data=replace(recipe.data, normalise=choice.normalise))
