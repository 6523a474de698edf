"""A run: the steps of a setting in order, each trained once, tested, and recorded."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cispbench.harness.data.loader import EvalLoader, TrainLoader
from cispbench.harness.data.source import Source
from cispbench.harness.data.transforms import EvalView
from cispbench.harness.distributed.group import ALONE, Group
from cispbench.harness.evaluate import evaluate
from cispbench.harness.machine.locks import run_lock
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.machine.seeds import derive_seed, seed_everything
from cispbench.harness.method import Method, StepContext
from cispbench.harness.models.catalogue import build_model, least_images
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.runs.inputs import load_planned_weights, planned_method, planned_source
from cispbench.harness.runs.plan import PlannedStep, RunPlan
from cispbench.harness.runs.recording import step_manifest, step_record, trained_here
from cispbench.harness.runs.step_store import CHECKPOINT, METHOD, DamagedStepError, StepStore
from cispbench.harness.training.job import TrainingJob, TrainingLog
from cispbench.harness.training.loop import StepTraining
from cispbench.harness.training.out_of_memory import explaining_memory
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import Execution
from cispbench.results.store import Store
from cispbench.splits.errors import MethodError, StoreError

CACHE_BYTES = 2 * 1024**3  # decoded images are kept in memory up to this size
TRAIN, TEST, END = "train", "test", "end"  # what the first process of a group tells the others to do


@dataclass(frozen=True)
class RunOptions:
    """Where and how a run works: no choice of the experiment, though devices differ in their rounding.

    ``until``: the last step to train and test (None: the last one of the setting). ``stop`` is asked after every
    iteration; once it returns True the run ends with a StoppedError, at a checkpoint. ``group``: the processes that
    share each batch; the first one alone reads and writes the stores. ``source``, ``method``: those of the plan, where
    they are open already (None: they are opened when they are needed).
    """

    records: Store
    steps: StepStore
    device: torch.device
    view: ProgressView
    workers: int = 0
    wait: float | None = None
    on_step: Callable[[StepRecord], None] | None = None
    until: int | None = None
    stop: Callable[[], bool] | None = None
    group: Group = ALONE
    source: Source | None = None
    method: Method | None = None


@dataclass(frozen=True)
class RunResult:
    """The records of all steps; ``trained`` counts the steps trained now."""

    records: list[StepRecord]
    trained: int
    finished_before: bool = False


def execute(plan: RunPlan, options: RunOptions) -> RunResult:
    """Train and test what is missing of a run, in order; what is there is left as it is.

    Of several processes the first one returns the result, and the others none of it. Raises RunError, StoreError,
    DataError or MethodError; whatever is finished by then stays.
    """
    run = _Run(plan, options)
    if not options.group.first:
        run.follow()
        return RunResult([], trained=0)
    result = _lead(run)
    options.group.decide((END, 0))
    return result


def _lead(run: _Run) -> RunResult:
    plan, options = run.plan, run.options
    wanted = [planned for planned in plan.steps if options.until is None or planned.step <= options.until]
    found = [options.records.find(planned.key, plan.run_key) for planned in wanted]
    if all(found):
        return RunResult([record for record in found if record is not None], trained=0, finished_before=True)
    run.refuse_changed_code()
    options.records.prepare()
    records = []
    for planned, record in zip(wanted, found, strict=True):
        if record is None:
            run.provide(planned.step)
            record = step_record(
                plan, planned, type(run.method), run.evaluation(planned), options.steps.manifest(planned.key)
            )
            options.records.write(record)
        records.append(record)
        if options.on_step is not None:
            options.on_step(record)
    return RunResult(records, run.trained)


class _Run:
    """The work of one run, step by step."""

    def __init__(self, plan: RunPlan, options: RunOptions) -> None:
        self.plan, self.options, self.store = plan, options, options.steps
        self.trained = 0

    def refuse_changed_code(self) -> None:
        """Make the method before anything is written: its versions are held against the plan's."""
        _ = self.method

    @cached_property
    def method(self) -> Method:
        return self.options.method or planned_method(self.plan)

    @cached_property
    def source(self) -> Source:
        return self.options.source or planned_source(self.plan, self.store.root, self.options.view)

    def provide(self, step: int) -> None:
        """See to it that the step is in the step store, training it (and what it builds on) if it is not."""
        planned = self.plan.planned(step)
        if self._intact(planned.key):
            return
        if step > 0 and planned.previous_key is None:
            raise StoreError(
                f"the imported step {planned.key[:10]} is missing or damaged in {self.store.root}.",
                hint="Import its checkpoint again.",
            )
        if step > 0:
            self.provide(step - 1)
        with self._lock(planned) as work:
            if self._intact(planned.key, set_aside=True):
                return
            started = time.perf_counter()
            self.options.group.decide((TRAIN, step))
            model, log, iterations = self._train(planned, work / CHECKPOINT)
            self._check_shared_base(step)
            seconds = log.wall_before + time.perf_counter() - started
            execution = Execution(self.options.group.size, self.plan.micro_batch)
            made = step_manifest(model, log, str(self.options.device), iterations=iterations, seconds=seconds)
            manifest = {**made, **trained_here(self.plan, planned, execution)}
            self.store.publish(planned.key, model.state_dict(), self.method.state_dict(), manifest)
        self.trained += 1

    def follow(self) -> None:
        """Do what the first process says, until it says that this is the end."""
        while True:
            what, step = self.options.group.decide((END, 0))
            if what == END:
                return
            planned = self.plan.planned(step)
            if what == TRAIN:
                self._train(planned, self.store.root / "work" / planned.key / CHECKPOINT)
            else:
                self._count(planned)

    def _check_shared_base(self, step: int) -> None:
        method = self.method
        if step == 0 and method.shared_base and method.state_dict():
            raise MethodError(
                f"{method.name} keeps {', '.join(method.state_dict())} after step 0, which other methods share.",
                hint="Set shared_base = False in its class.",
            )

    @contextmanager
    def _lock(self, planned: PlannedStep) -> Iterator[Path]:
        """Hold a step against other processes, swept of what killed ones left; yields its working folder."""
        plan, folder = self.plan, self.store.work(planned.key)
        what = f"step {planned.step} of {plan.method.name} on {plan.setting.name}, seed {plan.seed}"
        with run_lock(folder, what, self.options.wait, on_wait=self.options.view.waiting):
            self.store.clean_up(planned.key)
            yield folder

    def _intact(self, key: str, set_aside: bool = False) -> bool:
        """Whether the step is published and sound; who holds its lock may move a damaged one out of the way."""
        if not self.store.has(key):
            return False
        try:
            self.store.load(key)
            self.store.load(key, METHOD)
        except DamagedStepError as error:
            if set_aside:
                aside = self.store.set_aside(key)
                self.options.view.note(f"{error} It is kept as {aside.name} and the step is trained anew.")
            return False
        return True

    def model_after(self, step: int) -> IncrementalModel:
        """Build the model as it is after ``step``, with its published weights."""
        model = self._bare_model()
        for index in range(step + 1):
            model.grow(self.plan.learnt.new_classes(index))
        model.load_state_dict(self.store.load(self.plan.planned(step).key))
        return model

    def _bare_model(self) -> IncrementalModel:
        model = build_model(self.plan.recipe.model, self.plan.recipe.data.crop)
        model.freeze_batch_norm = self.plan.recipe.freeze_batch_norm
        return model

    def _train(self, planned: PlannedStep, checkpoint: Path) -> tuple[IncrementalModel, TrainingLog, int]:
        plan, options, step = self.plan, self.options, planned.step
        seed_everything(derive_seed(plan.seed, "model", step))
        previous = None
        if step == 0:
            model = self._bare_model()
            load_planned_weights(plan, model, self.store.root / "weights")
        else:
            model = self.model_after(step - 1)
            previous = copy.deepcopy(model).eval().requires_grad_(False)
            kept = self.store.load(plan.planned(step - 1).key, METHOD)
            self.method.load_state_dict({name: tensor.to(options.device) for name, tensor in kept.items()})
            seed_everything(derive_seed(plan.seed, "growth", step))
        model.grow(plan.learnt.new_classes(step))
        context = StepContext(
            plan.learnt, step, plan.learnt.old_classes(step), plan.learnt.new_classes(step), model, previous
        )
        with explaining_memory(*self._memory_words(plan.recipe.phase(step), model)):
            return model, *self._train_grown(planned, context, checkpoint)

    def _train_grown(self, planned: PlannedStep, context: StepContext, checkpoint: Path) -> tuple[TrainingLog, int]:
        plan, options, phase = self.plan, self.options, self.plan.recipe.phase(planned.step)
        context.model.to(options.device)
        if context.previous is not None:
            context.previous.to(options.device)
        self.method.initialise(context)
        job = TrainingJob(
            method=self.method,
            context=context,
            loader=self._train_loader(planned, phase.batch),
            phase=phase,
            device=options.device,
            seed=derive_seed(plan.seed, "training", planned.step),
            checkpoint=checkpoint,
            view=options.view,
            images=len(planned.images),
            stop=options.stop,
            group=options.group,
            micro_batch=plan.micro_batch,
        )
        return StepTraining(job).run(), job.iterations

    def _memory_words(self, phase: OptimRecipe, model: IncrementalModel) -> tuple[str, torch.device, str]:
        """Return what a training needs memory for, where, and what to set if there is too little."""
        recipe, options = self.plan.recipe, self.options
        share = -(-phase.batch // options.group.size)
        held = min(share, self.plan.micro_batch or share)
        hints = ["a smaller crop (--set data.crop=...)"]
        if phase.precision == "fp32":
            hints.insert(0, "--set optim.precision=bf16")
        least = least_images(recipe.model)
        if held > least:
            same = "almost the same result" if model.trains_batch_norm() else "the same result"
            hints.insert(0, f"--micro-batch {max(least, held // 2)} ({same})")
        what = f"{held} images at once (batch {phase.batch}, crop {recipe.data.crop}) with {recipe.model}"
        return what, options.device, f"Set {', or '.join(hints)}."

    def _train_loader(self, planned: PlannedStep, batch: int) -> TrainLoader:
        recipe = self.plan.recipe.data
        return TrainLoader(
            self.source,
            planned.images,
            self.plan.learnt.label_table(planned.step),
            recipe,
            batch,
            seed=derive_seed(self.plan.seed, "data", planned.step),
            workers=self.options.workers,
            cache=self._fits_in_memory(planned.images),
            pin_memory=self.options.device.type == "cuda",
        )

    def _fits_in_memory(self, images: tuple[str, ...]) -> bool:
        if self.options.workers:
            return False
        image, mask = self.source.read("train", images[0])
        return len(images) * (image.numel() + mask.numel()) * 1.3 < CACHE_BYTES

    def evaluation(self, planned: PlannedStep) -> dict[str, Any]:
        """Return the step's confusion matrix and the seconds it took, from the store where it is known."""
        known = self.store.evaluation(planned.key, self.plan.evaluation_key)
        if known is not None:
            return known
        with self._lock(planned):
            return self.store.evaluation(planned.key, self.plan.evaluation_key) or self._evaluate(planned)

    def _evaluate(self, planned: PlannedStep) -> dict[str, Any]:
        started = time.perf_counter()
        self.options.group.decide((TEST, planned.step))
        matrix, images = self._count(planned)
        content = {"confusion": matrix.tolist(), "seconds": time.perf_counter() - started, "images": images}
        self.store.write_evaluation(planned.key, self.plan.evaluation_key, content)
        return content

    def _count(self, planned: PlannedStep) -> tuple[torch.Tensor, int]:
        """Return the confusion matrix of a published step, every process counting its share, and how many images."""
        plan, recipe, options = self.plan, self.plan.recipe, self.options
        ids, group = self.source.ids("val"), options.group
        view = EvalView(recipe.evaluation.resize_short, recipe.evaluation.crop, recipe.data.normalise)
        loader = EvalLoader(
            self.source, "val", ids, plan.setting.test_table(), view, recipe.evaluation.batch, options.workers,
            rank=group.rank, devices=group.size,
        )  # fmt: skip
        model = self.model_after(planned.step)
        what = f"{recipe.evaluation.batch} test images at once with {recipe.model}"
        with explaining_memory(what, options.device, "Set fewer (--set evaluation.batch=1)."):
            matrix = evaluate(
                model.to(options.device),
                loader,
                plan.setting.num_foreground + 1,
                options.device,
                recipe.optim.precision,
                lambda done: options.view.evaluating(min(done * group.size, len(ids)), len(ids)),
            )
        return group.sum(matrix), len(ids)
