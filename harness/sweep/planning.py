"""From the runs that a sweep asks for to their plans: every recipe, list of images and checksum is looked at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cispbench.harness.data.source import Source, locate
from cispbench.harness.data.synthetic import synthetic_source
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Method
from cispbench.harness.models.weights import load_table
from cispbench.harness.recipes.fields import Recipe, load_strict
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method
from cispbench.harness.runs.inputs import fit_weights, open_source
from cispbench.harness.runs.plan import ImageLists, RunPlan, parts_note, plan_run
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.runs.weights_choice import WeightsChoice, check_weights, choose_weights
from cispbench.harness.sweep.graph import Graph, build_graph
from cispbench.harness.sweep.matrix import Cell
from cispbench.harness.sweep.published import PublishedLists, PublishedSource
from cispbench.harness.sweep.slots import WorkerSlots
from cispbench.harness.sweep.step_states import StepStates
from cispbench.results.store import Store
from cispbench.splits.errors import CispbenchError, UsageError
from cispbench.splits.settings import Setting

PARTITIONED = "the partition was drawn with a seed that is lost, and its image lists are not shipped"


@dataclass(frozen=True)
class Choices:
    """What all runs of a sweep have in common; ``apart``: they share no step; ``micro_batch``: the images that a
    device holds at once at most (None: the batch)."""

    profile: str
    model: str | None
    overrides: tuple[str, ...]
    weights: str | None
    data_root: Path | None
    steps_dir: Path
    apart: bool = False
    micro_batch: int | None = None


@dataclass(frozen=True)
class LeftOut:
    """A method that does not serve a setting, and why."""

    method: str
    setting: str
    reason: str


@dataclass(frozen=True)
class SweepPlan:
    """The plans of all runs; ``without_data`` names the data sets that only published counts stand for.

    ``weights``: what a recipe's label of pre-trained weights was asked for by (a file's label is its name alone).
    """

    runs: tuple[RunPlan, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    without_data: tuple[str, ...]
    weights: dict[str | None, str | None]


class Planner:
    """Plans runs; ``to_train`` asks for the data and the weights themselves, not for what is published of them."""

    def __init__(self, choices: Choices, view: ProgressView, to_train: bool) -> None:
        self.choices, self.view, self.to_train = choices, view, to_train
        self._notes = _Notes()
        self._methods: dict[str, type[Method]] = {}
        self._data: dict[str, tuple[Source, ImageLists]] = {}
        self._weights: dict[tuple[str, str], WeightsChoice] = {}
        self._asked: dict[str | None, str | None] = {}

    def plan(self, cells: Sequence[Cell]) -> SweepPlan:
        """Plan the runs in their order. Raises CispbenchError; UsageError if every one of them is left out."""
        runs: list[RunPlan] = []
        left_out: dict[tuple[str, str], LeftOut] = {}
        prepared: dict[tuple[str, str], tuple[Recipe, str | None]] = {}
        for cell in cells:
            place = (cell.method, cell.setting.name)
            if place in left_out:
                continue
            reason = PARTITIONED if cell.setting.scenario == "partitioned" else None
            if reason is None and place not in prepared:
                recipe, reason = self._recipe(cell.method, cell.setting)
                if reason is None:
                    prepared[place] = self._with_weights(recipe)
            if reason is not None:
                left_out[place] = LeftOut(*place, reason)
                continue
            runs.append(self._run(cell, *prepared[place]))
        if not runs:
            reasons = "; ".join(f"{entry.method} on {entry.setting}: {entry.reason}" for entry in left_out.values())
            raise UsageError(f"nothing is left of the sweep: {reasons}.")
        without = tuple(name for name, (source, _) in self._data.items() if isinstance(source, PublishedSource))
        return SweepPlan(tuple(runs), tuple(left_out.values()), tuple(self._notes.lines), without, self._asked)

    def _recipe(self, method: str, setting: Setting) -> tuple[Recipe, str | None]:
        """Return the recipe and, if the method declines the setting or the model, why."""
        if method not in self._methods:
            self._methods[method] = load_method(method)
        cls = self._methods[method]
        recipe = load_recipe(cls, setting, self.choices.profile, self.choices.model, self.choices.overrides)
        worker = cls(load_strict(cls.Options, recipe.method, "method"))
        return recipe, worker.unsupported(setting, recipe.model)

    def _with_weights(self, recipe: Recipe) -> tuple[Recipe, str | None]:
        asked = self.choices.weights or recipe.weights
        name = check_weights(asked, recipe.model)
        if (name, recipe.model) not in self._weights:
            self._weights[name, recipe.model] = self._choose(asked, name, recipe.model)
        choice = self._weights[name, recipe.model]
        self._asked[choice.label] = asked
        fitted = fit_weights(recipe, choice, self.choices.profile, self.choices.overrides, self._notes)
        return fitted, choice.sha256

    def _choose(self, asked: str | None, name: str, model: str) -> WeightsChoice:
        """Choose the weights; a plan takes those not fetched yet at the word of the table."""
        folder, entry = self.choices.steps_dir / "weights", load_table().get(name)
        if self.to_train or entry is None or (folder / entry.file_name).is_file():
            return choose_weights(asked, model, folder, named=bool(self.choices.weights))
        self._notes.note(f"the weights {name} are not here yet; a training fetches them")
        return WeightsChoice(name, entry.sha256 or f"{entry.digits}...", entry.normalise, _not_fetched)

    def _run(self, cell: Cell, recipe: Recipe, weights_sha256: str | None) -> RunPlan:
        cls = self._methods[cell.method]
        source, lists = self._open(cell.setting)
        plan = plan_run(
            setting=cell.setting, method=cls(load_strict(cls.Options, recipe.method, "method")), recipe=recipe,
            profile=self.choices.profile, seed=cell.seed, source=source, weights_sha256=weights_sha256, lists=lists,
            apart=self.choices.apart, micro_batch=self.choices.micro_batch,
        )  # fmt: skip
        parts = parts_note(plan, 1, self.choices.micro_batch)
        if parts is not None:
            self._notes.note(parts)
        return plan

    def _open(self, setting: Setting) -> tuple[Source, ImageLists]:
        if setting.dataset not in self._data:
            self._data[setting.dataset] = self._data_of(setting)
        return self._data[setting.dataset]

    def _data_of(self, setting: Setting) -> tuple[Source, ImageLists]:
        choices, name = self.choices, setting.dataset
        if choices.profile == "paper" and not self.to_train and locate(name, choices.data_root) is None:
            published = PublishedSource(name)
            return published, PublishedLists(published)
        source = open_source(setting, choices.profile, choices.data_root, choices.steps_dir, self.view)
        # Scenes stay in memory once they are drawn, and the plans are sent to other processes: they get fresh ones.
        return (synthetic_source(name) if choices.profile == "quick" else source), ImageLists(source)


def plan_sweep(
    cells: Sequence[Cell], choices: Choices, records: Store, machine: WorkerSlots, view: ProgressView, to_train: bool
) -> tuple[SweepPlan, Graph]:
    """Plan all runs and hold their steps against the stores. Raises CispbenchError."""
    plan = Planner(choices, view, to_train).plan(cells)
    states = StepStates(records, StepStore(choices.steps_dir), machine.devices[0], choices.micro_batch)
    return plan, build_graph(plan.runs, states.find)


class _Notes(ProgressView):
    """Keeps each line once."""

    def __init__(self) -> None:
        self.lines: dict[str, None] = {}

    def note(self, text: str) -> None:
        self.lines[text] = None


def _not_fetched(model: object) -> None:
    raise CispbenchError("a plan alone has no weights to load.")
