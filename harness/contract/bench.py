"""The test bench: one method with one model on synthetic scenes, and the short trainings that the rules examine.

The trainings are ordinary runs (``runs.execute``). The method is wrapped in a ``recorder``, the data sources are
monitored, and nothing else is special.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from cispbench.harness.contract.recorded import RecordedTraining
from cispbench.harness.contract.recorder import recorder
from cispbench.harness.contract.sources import monitored_sources
from cispbench.harness.contract.verdict import NotApplicable, Unchecked
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Companion, Method
from cispbench.harness.models.catalogue import build_model, lacking
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import make_method
from cispbench.harness.runs.execute import execute
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import plan_run
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.training.job import StoppedError
from cispbench.results.record import StepRecord
from cispbench.results.store import Store
from cispbench.splits.errors import DataError, MethodError, StoreError, UsageError, describe_error
from cispbench.splits.settings import Setting, parse_setting

SEED = 0
ONE_CLASS, MANY_CLASSES = "voc:overlapped-10-1", "voc:overlapped-10-10"
NOT_THE_METHOD = (DataError, StoreError, UsageError)


@dataclass(frozen=True)
class Sizes:
    """How small the trainings are.

    ``setting``: of the main training. If its step 0 learns 10 classes of VOC, the trainings with one and with ten new
    classes use the same step 0. ``grid``: the side of the model's map in tokens, which decides the crop. ``scenes``,
    ``batch``: numbers of images. ``iterations``: of each step. ``learning``: iterations after which the loss must be
    lower.
    """

    setting: str = "overlapped-10-5"
    grid: int = 8
    scenes: int = 30
    batch: int = 4
    iterations: int = 4
    learning: int = 40


class _LastStepDone(Exception):  # noqa: N818 (ends a run early, not an error)
    pass


class Bench:
    """A method's class with a model by name. Each training runs once, in a folder below ``folder``."""

    def __init__(self, cls: type[Method], model: str, sizes: Sizes, folder: Path) -> None:
        self.cls, self.model, self.sizes, self._folder = cls, model, sizes, folder
        self.crop = sizes.grid * _stride(model)
        self._recipes: dict[str, Recipe] = {}
        self._trainings: dict[tuple[str, Path], RecordedTraining] = {}

    @cached_property
    def method(self) -> Method:
        """An instance to ask for facts; it is never trained. Raises MethodError."""
        return self.make()

    @property
    def joint(self) -> bool:
        """Whether the method learns all classes in a single step."""
        return self.method.joint

    @cached_property
    def scenes(self) -> SyntheticSource:
        """The data of all trainings."""
        return SyntheticSource("voc", train=self.sizes.scenes, val=1, size=self.crop)

    @property
    def setting(self) -> Setting:
        """The main training's setting, as the method learns it."""
        setting = parse_setting(self.sizes.setting)
        return setting.joint() if self.joint else setting

    def recipe(self, setting: str | None = None) -> Recipe:
        """Return the method's recipe of the profile quick, cut down to the bench's sizes."""
        setting = setting or self.sizes.setting
        if setting not in self._recipes:
            changes = [f"data.crop={self.crop}", "data.resize=none", "data.resize_short=null", "weights=none"]
            changes += ["evaluation.resize_short=null", "evaluation.crop=null"]
            for part in ("optim", "later"):
                sizes = [f"{part}.batch={self.sizes.batch}", f"{part}.iterations={self.sizes.iterations}"]
                changes += [*sizes, f"{part}.warmup=0", f"{part}.precision=fp32"]
            chosen = parse_setting(setting)
            uncut = load_recipe(self.cls, chosen, "quick", self.model)
            for part, numbers in (("steps", uncut.steps), ("phases", uncut.phases)):
                for name, fields in numbers.items():
                    shorter = {"batch": self.sizes.batch, "iterations": self.sizes.iterations}
                    changes += [f"{part}.{name}.{field}={shorter[field]}" for field in shorter if field in fields]
            self._recipes[setting] = load_recipe(self.cls, chosen, "quick", self.model, changes)
        return self._recipes[setting]

    def make(self, setting: str | None = None) -> Method:
        """Return a new instance with the recipe's options. Raises MethodError if that fails."""
        recipe = self.recipe(setting)
        try:
            return make_method(self.cls, recipe.method)
        except Exception as error:
            raise MethodError(
                f"the method {self.cls.name!r} cannot be made from its options: {describe_error(error)}.",
                hint="A Method is made by Method(options), and implements `losses`.",
            ) from error

    def unsupported(self, setting: str | None = None) -> str | None:
        """Return the method's reason for not supporting a setting with this model, or None. Raises MethodError."""
        chosen = parse_setting(setting or self.sizes.setting)
        method = self.make(setting)
        try:
            reason = lacking(self.model, method.needs) or method.unsupported(chosen, self.model)
        except Exception as error:
            raise MethodError(
                f"the method {self.cls.name!r} fails to say whether it serves {chosen.name} with {self.model}: "
                f"{describe_error(error)}.",
                hint="Let `unsupported` return a reason, or None.",
            ) from error
        return reason or self._missing_maps(method.companions(chosen))

    def _missing_maps(self, companions: Sequence[Companion]) -> str | None:
        for companion in companions:
            try:
                self.scenes.maps(companion, "train", self.scenes.ids("train")[:1])
            except DataError as error:
                return str(error)
        return None

    @property
    def main(self) -> RecordedTraining:
        """The training that most rules examine, up to its end or its failure."""
        return self._run(self.sizes.setting, self._folder / "main")

    @property
    def finished(self) -> RecordedTraining:
        """The main training. Raises Unchecked if it failed."""
        self.require_finished()
        return self.main

    def require_finished(self) -> None:
        """Raise Unchecked if the main training failed."""
        if self.main.failure is not None:
            raise Unchecked("not reached: the training stopped")

    def require_second_step(self) -> None:
        """Raise NotApplicable for a method that has a single step."""
        if self.joint:
            raise NotApplicable("the method learns all classes in a single step")

    def require_repeatable(self) -> None:
        """Raise Unchecked if a repeated training differs: then no other comparison means anything."""
        if self.difference() is not None:
            raise Unchecked("not judged: two equal trainings differ already")

    def difference(self, *, interrupt: bool = False, scramble: bool = False) -> str | None:
        """Repeat the main training and return the first difference, None if the two agree bit for bit.

        ``interrupt``: interrupted within and after each step, and resumed by a new instance of the method each time.
        ``scramble``: with the labels of other classes scrambled in the data. Raises Unchecked if a plain repetition
        differs, too.
        """
        # One training answers three rules for most methods: no difference with both changes means none with either.
        if self._compare(interrupt=True, scramble=True) is None:
            return None
        if interrupt or scramble:
            self.require_repeatable()
        return self._compare(interrupt, scramble)

    def _compare(self, interrupt: bool, scramble: bool) -> str | None:
        folder = self._folder / f"repeated-{interrupt:d}{scramble:d}"
        repeated = self._run(self.sizes.setting, folder, interrupt=interrupt, scramble=scramble)
        return self.finished.first_difference(repeated)

    def second_step_of(self, setting: str) -> RecordedTraining:
        """Train step 1 of another setting, after the main training's step 0, which the settings share."""
        self.require_finished()
        return self._run(setting, self._folder / "main", last=1)

    def _run(
        self, setting: str, folder: Path, *, last: int | None = None, interrupt: bool = False, scramble: bool = False
    ) -> RecordedTraining:
        """Train what the folder does not hold yet, up to the step ``last``; the models of the folder "main" are kept.

        A training is not run twice: what it recorded is remembered.
        """
        key = (setting, folder)
        if key in self._trainings:
            return self._trainings[key]
        chosen = parse_setting(setting)
        training = self._trainings[key] = RecordedTraining(self.model, chosen.name)

        def on_step(record: StepRecord) -> None:
            if record.step == last:
                raise _LastStepDone

        def stop() -> bool:
            # A shared step 0 is plain cross-entropy, which needs no state.
            if not interrupt or (self.method.shared_base and len(training.steps) == 1):
                return False
            step = training.steps[-1]
            phase = step.calls[-1].phase
            # After the first iteration of each phase, and between two phases.
            return len(step.batches_of(phase)) == 1 or step.ended == phase

        try:
            training.planned = False
            plan = plan_run(setting=chosen, method=self.make(setting), recipe=self.recipe(setting), profile="quick",
                            seed=SEED, source=self.scenes)  # fmt: skip
            training.planned = True
            with monitored_sources(training, scramble):
                while True:
                    method = recorder(partial(self.make, setting), training, keep_models=folder.name == "main",
                                      new_instances=interrupt)  # fmt: skip
                    options = RunOptions(Store(folder / "out"), StepStore(folder / "steps"), torch.device("cpu"),
                                         ProgressView(), on_step=on_step, stop=stop, source=self.scenes,
                                         method=method)  # fmt: skip
                    # Stopped by `stop`: the next turn, with a new instance, goes on from the checkpoint.
                    with suppress(StoppedError):
                        execute(plan, options)
                        break
        except _LastStepDone:
            pass
        except NOT_THE_METHOD:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a plug-in raises is a violation)
            training.error = error
        return training


def _stride(model: str) -> int:
    """Return the side of one of the model's tokens in pixels."""
    side = 64
    built = build_model(model, side).eval()
    built.grow(2)
    with torch.no_grad():
        masks: torch.Tensor = built(torch.zeros(1, 3, side, side)).masks
    return side // masks.shape[-1]
