"""The work on one step of a run: build its networks, train them, and count on the test images.

Nothing here looks into the store of records or decides what is missing; ``execute.py`` does.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from cispbench.harness.data.loader import EvalLoader
from cispbench.harness.data.source import Source
from cispbench.harness.data.transforms import EvalView
from cispbench.harness.data.workers import explaining_lost_workers
from cispbench.harness.evaluate import Prediction, evaluate
from cispbench.harness.machine.devices import to_device
from cispbench.harness.machine.seeds import derive_seed, seed_everything
from cispbench.harness.method import Exemplar, Method, StepContext
from cispbench.harness.models.catalogue import build_model, least_images
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.runs.exemplar_choice import exemplars_of
from cispbench.harness.runs.inputs import (
    load_planned_weights,
    planned_method,
    planned_source,
    planned_test_maps,
)
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import PlannedStep, RunPlan
from cispbench.harness.runs.step_data import StepData
from cispbench.harness.runs.step_store import METHOD
from cispbench.harness.training.job import TrainingJob, TrainingLog
from cispbench.harness.training.loop import StepTraining
from cispbench.harness.training.out_of_memory import explaining_memory
from cispbench.harness.training.shared_base import SharedBase
from cispbench.splits.errors import WeightsError


class StepWork:
    """Trains and tests the steps of one run. The method and the data are opened when they are first needed."""

    def __init__(self, plan: RunPlan, options: RunOptions) -> None:
        self.plan, self.options, self.store = plan, options, options.steps
        self.exemplars: list[Exemplar] = []  # of the step that was trained last

    @cached_property
    def method(self) -> Method:
        """The method of the plan. Raises RunError if its code has changed since the plan was made."""
        return self.options.method or planned_method(self.plan)

    @cached_property
    def source(self) -> Source:
        """The data of the plan. Raises DataError if they have changed since the plan was made."""
        return self.options.source or planned_source(self.plan, self.store.root, self.options.view)

    @cached_property
    def data(self) -> StepData:
        """The loaders of the plan's steps."""
        return StepData(self.plan, self.source, self.options)

    def model_after(self, step: int) -> IncrementalModel:
        """Build the model as it is after ``step``, with its published weights."""
        model = self._bare_model()
        for index in range(step + 1):
            model.grow(self.method.layout(self.plan.learnt, index))
        key = self.plan.planned(step).key
        try:
            model.load_state_dict(self.store.load(key))
        except RuntimeError as error:  # what torch raises for names or shapes that do not fit
            raise WeightsError(
                f"the weights of the step {key[:10]} do not fit the network {self.plan.recipe.model}: "
                f"{str(error).partition(chr(10))[0]}",
                hint="If its code has changed, raise the version in its entry: then its steps have other keys.",
            ) from error
        return model

    def _bare_model(self) -> IncrementalModel:
        model = build_model(self.plan.recipe.model, self.plan.recipe.data.crop)
        model.freeze_batch_norm = self.plan.recipe.freeze_batch_norm
        return model

    def train(self, planned: PlannedStep, checkpoint: Path) -> tuple[IncrementalModel, TrainingLog, int]:
        """Train a step, from its checkpoint if there is one; return the network, the log and the number of iterations.

        The random state is set anew at each part, so that a step does not depend on what was done before it.
        """
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
        model.grow(self.method.layout(plan.learnt, step))
        context = StepContext(
            plan.learnt, step, plan.learnt.old_classes(step), plan.learnt.new_classes(step), model, previous
        )
        recipes = [plan.recipe.phase(step, name) for name in planned.phases]
        with explaining_memory(*self._memory_words(recipes, model)), explaining_lost_workers():
            return model, *self._train_grown(planned, context, checkpoint)

    def _train_grown(self, planned: PlannedStep, context: StepContext, checkpoint: Path) -> tuple[TrainingLog, int]:
        plan, options = self.plan, self.options
        to_device(context.model, options.device)
        if context.previous is not None:
            to_device(context.previous, options.device)
        method = self._trained_method(planned.step)
        shared = method is not self.method
        phases = {name: plan.recipe.phase(planned.step, name) for name in planned.phases}
        job = TrainingJob(
            method=method,
            context=context,
            phases=phases,
            loader=lambda name: self.data.loader(planned, phases[name].batch, self.exemplars, phase=name),
            passes=self.data.passes,
            device=options.device,
            seed=derive_seed(plan.seed, "training", planned.step),
            checkpoint=checkpoint,
            view=options.view,
            images=len(planned.images),
            stop=options.stop,
            group=options.group,
            micro_batch=plan.micro_batch,
            # No code of a method has a part in a shared base.
            code=None if shared else plan.method.code,
            key=planned.key,
            acceleration=options.acceleration,
        )
        self.exemplars = exemplars_of(planned, self.data, job)
        log = StepTraining(job).run()
        return log, log.planned

    def _trained_method(self, step: int) -> Method:
        """Return what trains a step: the method, or the harness itself where methods share the base."""
        return SharedBase() if step == 0 and self.method.shared_base else self.method

    def state_after(self, step: int) -> dict[str, torch.Tensor]:
        """Return the state to publish with a step that was trained last."""
        return self._trained_method(step).state_dict()

    def _memory_words(self, recipes: Sequence[OptimRecipe], model: IncrementalModel) -> tuple[str, torch.device, str]:
        """Return what a training needs memory for, where, and what to set if there is too little."""
        recipe, options, phase = self.plan.recipe, self.options, max(recipes, key=lambda one: one.batch)
        share = -(-phase.batch // options.group.size)
        held = min(share, self.plan.micro_batch or share)
        hints = ["a smaller crop (--set data.crop=...)"]
        if phase.precision == "fp32":
            hints.insert(0, "--set optim.precision=bf16")
        least = least_images(recipe.model)
        if held > least and self.method.micro_batches:
            same = "almost the same result" if model.trains_batch_norm() else "the same result"
            hints.insert(0, f"--micro-batch {max(least, held // 2)} ({same})")
        what = f"{held} images at once (batch {phase.batch}, crop {recipe.data.crop}) with {recipe.model}"
        return what, options.device, f"Set {', or '.join(hints)}."

    def count(self, planned: PlannedStep) -> tuple[torch.Tensor, int]:
        """Return the confusion matrix of a published step, every process counting its share, and how many images."""
        plan, recipe, options = self.plan, self.plan.recipe, self.options
        ids, group = self.source.ids("val"), options.group
        view = EvalView(recipe.evaluation.resize_short, recipe.evaluation.crop, recipe.data.normalise)
        loader = EvalLoader(
            self.source, "val", ids, plan.setting.test_table(), view, recipe.evaluation.batch, options.workers,
            rank=group.rank, devices=group.size, companions=planned_test_maps(plan, self.source),
            device=options.device,
        )  # fmt: skip
        model = self.model_after(planned.step)
        what = f"{recipe.evaluation.batch} test images at once with {recipe.model}"
        hint = "Set fewer (--set evaluation.batch=1)."
        with explaining_memory(what, options.device, hint), explaining_lost_workers():
            matrix = evaluate(
                to_device(model, options.device),
                loader,
                plan.setting.num_foreground + 1,
                options.device,
                recipe.optim.precision,
                lambda done: options.view.evaluating(min(done * group.size, len(ids)), len(ids)),
                Prediction(self.method.scores, plan.learnt.num_classes(planned.step), plan.setting.num_foreground + 1),
            )
        return group.sum(matrix), len(ids)
