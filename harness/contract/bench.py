"""The bench: one method with one model on synthetic scenes, and the short trainings that the rules judge.

All of them are plans carried out by ``run.execute``; only the method and the data source are watched on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from cispbench.harness.contract.sources import Lens, watched_sources
from cispbench.harness.contract.trace import Stop, Trace
from cispbench.harness.contract.verdict import NotApplicable, Unchecked
from cispbench.harness.contract.witness import followed, watched
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.fields import Recipe, load_strict
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.runs.execute import RunOptions, execute
from cispbench.harness.runs.plan import RunPlan, plan_run
from cispbench.harness.runs.step_store import StepStore
from cispbench.results.record import StepRecord
from cispbench.results.store import Store
from cispbench.splits.errors import DataError, MethodError, StoreError, UsageError
from cispbench.splits.settings import Setting, parse_setting

SEED = 0
ONE_CLASS, MANY_CLASSES = "voc:overlapped-10-1", "voc:overlapped-10-10"
NOT_THE_METHOD = (DataError, StoreError, UsageError)


@dataclass(frozen=True)
class Sizes:
    """How small the trainings are.

    ``setting``: of the main training; one whose step 0 learns 10 classes of VOC shares it with the other trainings.
    ``grid``: tokens on a side of the model's map, from which the crop follows. ``scenes`` and ``batch`` count images,
    ``iterations`` those of each step, ``learning`` those in which the loss has to fall.
    """

    setting: str = "overlapped-10-5"
    grid: int = 8
    scenes: int = 30
    batch: int = 4
    iterations: int = 4
    learning: int = 40


class _Enough(Exception):  # noqa: N818 (the end of a run that was wanted no further)
    """Ends a run after a step."""


class Bench:
    """A method's class with a model by name; what it trains below ``folder`` is trained once."""

    def __init__(self, cls: type[Method], model: str, sizes: Sizes, folder: Path) -> None:
        self.cls, self.model, self.sizes, self._folder = cls, model, sizes, folder
        self.crop = sizes.grid * _stride(model)
        self._recipes: dict[str, Recipe] = {}
        self._traces: dict[tuple[str, Path], Trace] = {}

    @property
    def joint(self) -> bool:
        """Whether the method learns all classes in a single step."""
        return self.cls.joint

    @cached_property
    def scenes(self) -> SyntheticSource:
        """The scenes of all trainings."""
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
            self._recipes[setting] = load_recipe(self.cls, chosen, "quick", self.model, changes)
        return self._recipes[setting]

    def make(self, setting: str | None = None) -> Method:
        """Return a new instance with the recipe's options. Raises MethodError if the class cannot be made."""
        options = load_strict(self.cls.Options, self.recipe(setting).method, "method")
        try:
            return self.cls(options)
        except Exception as error:
            raise MethodError(
                f"the method {self.cls.name!r} cannot be made from its options: {type(error).__name__}: {error}.",
                hint="A Method is made by Method(options), and implements `losses`.",
            ) from error

    def unsupported(self, setting: str | None = None) -> str | None:
        """Return why the method does not serve a setting with this model, in its own words. Raises MethodError."""
        chosen = parse_setting(setting or self.sizes.setting)
        method = self.make(setting)
        try:
            return method.unsupported(chosen, self.model)
        except Exception as error:
            raise MethodError(
                f"the method {self.cls.name!r} fails to say whether it serves {chosen.name} with {self.model}: "
                f"{type(error).__name__}: {error}.",
                hint="Let `unsupported` return a reason, or None.",
            ) from error

    def _plan(self, method: Method, setting: str) -> RunPlan:
        return plan_run(setting=parse_setting(setting), method=method, recipe=self.recipe(setting), profile="quick",
                        seed=SEED, source=self.scenes)  # fmt: skip

    @property
    def main(self) -> Trace:
        """The training that most rules judge, whatever became of it."""
        return self._run(self.sizes.setting, self._folder / "main", noted=True)

    def needs_end(self) -> None:
        """Raise Unchecked if the main training did not come to its end."""
        if self.main.stop is not None:
            raise Unchecked("not reached: the training stopped")

    @property
    def finished(self) -> Trace:
        """The main training. Raises Unchecked if it did not come to its end."""
        self.needs_end()
        return self.main

    def needs_steps(self) -> None:
        """Raise NotApplicable for a method without a second step."""
        if self.joint:
            raise NotApplicable("the method learns all classes in a single step")

    def needs_repetition(self) -> None:
        """Raise Unchecked for a method whose training is not the same twice: nothing can be compared with it."""
        if self.deviation() is not None:
            raise Unchecked("not judged: two equal trainings differ already")

    def deviation(self, *, fresh: bool = False, disguised: bool = False) -> str | None:
        """Return how the main training differs when each step has a ``fresh`` instance, or ``disguised`` masks.

        Without either: when it is simply repeated. Raises Unchecked if that differs already and more was asked.
        """
        if self._difference(fresh=True, disguised=True) is None:
            return None  # nothing differs with all of it at once, hence with none of it
        if fresh or disguised:
            self.needs_repetition()
        return self._difference(fresh=fresh, disguised=disguised)

    def _difference(self, fresh: bool = False, disguised: bool = False) -> str | None:
        folder = self._folder / f"repeated-{fresh:d}{disguised:d}"
        return _compare(self.finished, self._run(self.sizes.setting, folder, fresh=fresh, disguised=disguised))

    def step_of(self, setting: str) -> Trace:
        """Return what was seen of another setting's step 1, after the main training's step 0, which it shares."""
        self.needs_end()
        return self._run(setting, self._folder / "main", last=1)

    def _run(
        self, setting: str, folder: Path, *, last: int | None = None, fresh: bool = False, disguised: bool = False,
        noted: bool = False,
    ) -> Trace:  # fmt: skip
        """Train what the folder does not hold yet, up to the step ``last``, and return what was seen; once.

        ``fresh``: a new instance for every step, as after an interruption. ``disguised``: see ``sources.disguise``.
        ``noted``: everything is noted, and another instance restored in the middle of each step.
        """
        key = (setting, folder)
        if key not in self._traces:
            lens, trace = Lens(disguised), Trace(self.model, parse_setting(setting).name)

            def make() -> Method:
                method = self.make(setting)
                return (
                    watched(method, trace, lens, lambda: self.make(setting)) if noted else followed(method, trace, lens)
                )

            with watched_sources(lens):
                _carry_out(self._plan(self.make(setting), setting), make, self.scenes, trace, folder, last, fresh)
            self._traces[key] = trace
        return self._traces[key]


def _carry_out(
    plan: RunPlan, make: Callable[[], Method], scenes: SyntheticSource, trace: Trace, folder: Path, last: int | None,
    fresh: bool,
) -> None:  # fmt: skip
    """Execute a plan into its trace: at once, or (``fresh``) a step at a time, each with a method of its own."""
    steps = StepStore(folder / "steps")
    end = len(plan.steps) - 1 if last is None else last
    for stop in range(end + 1) if fresh else [end]:

        def on_step(record: StepRecord, stop: int = stop) -> None:
            if record.step == stop:
                raise _Enough

        where = RunOptions(
            Store(folder / "out"), steps, torch.device("cpu"), ProgressView(), on_step=on_step, source=scenes,
            method=make(),
        )  # fmt: skip
        try:
            execute(plan, where)
        except _Enough:
            continue
        except NOT_THE_METHOD:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a plug-in brings about is a finding)
            trace.stop = Stop(trace.failing, error)
            break
    trace.manifests = [steps.manifest(step.key) for step in plan.steps if steps.has(step.key)]


def _compare(one: Trace, other: Trace) -> str | None:
    """Return the first difference of two trainings of one plan, None if they agree bit for bit."""
    if other.stop is not None:
        return f"the training stops: {other.stop}"
    for step, (mine, theirs) in enumerate(zip(one.manifests, other.manifests, strict=True)):
        logs = [manifest["losses"]["terms"] for manifest in (mine, theirs)]
        for name in dict.fromkeys([*logs[0], *logs[1]]):
            values = [log.get(name, []) for log in logs]
            if values[0] != values[1]:
                a, b = next(((a, b) for a, b in zip(*values, strict=False) if a != b), ("present", "absent"))
                return f"at step {step} the term {name} is {b} instead of {a}"
        if mine["files"] != theirs["files"]:
            return f"after step {step} the weights or the method's state differ"
    return None


def _stride(model: str) -> int:
    """Return the pixels on a side of one of the model's tokens."""
    side = 64
    built = build_model(model, side).eval()
    built.grow(2)
    with torch.no_grad():
        masks: torch.Tensor = built(torch.zeros(1, 3, side, side)).masks
    return side // masks.shape[-1]
