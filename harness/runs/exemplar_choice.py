"""The choice of a step's exemplars: made once, by the method, and the same for every process and every new start."""

from __future__ import annotations

from dataclasses import replace

import torch

from cispbench.harness.machine.damaged import set_aside
from cispbench.harness.machine.devices import autocast
from cispbench.harness.machine.seeds import derive_seed, seed_everything
from cispbench.harness.method import Exemplar, Memory
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.runs.exemplars import Candidates, load_chosen, memory_in, save_chosen
from cispbench.harness.runs.plan import PlannedStep
from cispbench.harness.runs.step_data import StepData
from cispbench.harness.runs.step_store import EXEMPLARS
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.training.services import StepServices


def exemplars_of(planned: PlannedStep, data: StepData, job: TrainingJob) -> list[Exemplar]:
    """Return the exemplars that a step trains on, in every process those that the first one has chosen.

    They are those in the step's work folder, if it was begun before, or else what its method chooses. Raises
    MethodError for a choice that breaks the contract.
    """
    memory = data.memory_at(planned.step)
    if memory is None or planned.step == 0:
        return []
    model, chosen = job.context.model, list[Exemplar]()
    if job.group.first:
        model.eval()
        with torch.no_grad(), autocast(job.device, _first_phase(job).precision):
            chosen = _known_or_chosen(planned, memory, data, job)
        model.train()
    return job.group.decide(chosen)


def _known_or_chosen(planned: PlannedStep, memory: Memory, data: StepData, job: TrainingJob) -> list[Exemplar]:
    plan = data.plan
    path, by = job.checkpoint.with_name(EXEMPLARS), (plan.method.name, plan.method.code)
    chosen = load_chosen(path, planned.key, by, job.view)
    if chosen is None:
        _forget_training(job)
        chosen = _choose(planned, memory, data, job)
        save_chosen(path, planned.key, by, chosen)
    # Set anew, so that what follows does not depend on whether they were chosen now.
    seed_everything(derive_seed(plan.seed, "initialise", planned.step))
    return chosen


def _choose(planned: PlannedStep, memory: Memory, data: StepData, job: TrainingJob) -> list[Exemplar]:
    plan, before = data.plan, data.plan.planned(planned.step - 1)
    kept = memory_in(data.options.steps.manifest(before.key))
    batch = _first_phase(job).batch
    images = data.passes(data.loader(before, batch, (), reader=planned))(memory.view, batch)
    # The step's own images can be read, too, without the exemplars that are not chosen yet.
    services = StepServices(job, data.loader(planned, batch, ()))
    seed = derive_seed(plan.seed, "exemplars", planned.step)
    seed_everything(seed)
    context = replace(job.context, generator=torch.Generator().manual_seed(seed), services=services)
    found = job.method.select_exemplars(images, kept, context)
    return Candidates(before.step, kept, before.images).require(found, memory, plan.method.name)


def _first_phase(job: TrainingJob) -> OptimRecipe:
    """Return the recipe that exemplars are chosen by: the key of a step holds those of its phases alone."""
    return next(iter(job.phases.values()))


def _forget_training(job: TrainingJob) -> None:
    """Set the checkpoint aside of a training whose exemplars are lost: others might be chosen now."""
    if job.checkpoint.exists():
        aside = set_aside(job.checkpoint)
        job.view.warn(
            f"the exemplars of the checkpoint {job.checkpoint} are lost. It is kept as {aside.name} and the step "
            "starts anew."
        )
