"""The training of one step: its hooks and its phases in the order of the contract, from the start or a checkpoint."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from cispbench.harness.distributed.batch_norm import synchronise
from cispbench.harness.machine.seeds import derive_seed, seed_everything
from cispbench.harness.method import StepContext
from cispbench.harness.training.checkpoint import resume
from cispbench.harness.training.hooks import Hooks
from cispbench.harness.training.iteration import PhaseTraining
from cispbench.harness.training.job import TrainingJob, TrainingLog
from cispbench.harness.training.monitor import Monitor
from cispbench.harness.training.nonfinite import require_finite_weights
from cispbench.harness.training.services import StepServices
from cispbench.harness.training.state import TrainingState
from cispbench.harness.wrapper import overrides
from cispbench.splits.classes import class_names


class StepTraining:
    """One step from its first hook, or from its last checkpoint, to its last."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.group = job, job.group
        synchronise(job.context.model, job.group, job.device)

    def run(self) -> TrainingLog:
        """Train and return the log; Ctrl-C or death leaves the last checkpoint behind.

        Raises StoppedError once ``job.stop`` says so, after a checkpoint; RunError for losses that are NaN again and
        again, and for weights that are NaN (``nonfinite.py``); MethodError for a method that breaks its contract.
        """
        job, started = self.job, time.perf_counter()
        if job.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(job.device)
        state = resume(job) or self._initialised()
        # A part before an interruption may have used what this one does not.
        state.log.tf32 |= job.acceleration.tf32
        state.log.cudnn_benchmark |= job.acceleration.cudnn_benchmark
        self._announce(state)
        monitor = Monitor(job, state, started)
        self._train_phase(state, monitor)
        while not state.last_phase:
            state.next_phase()
            monitor.between_phases()
            self._train_phase(state, monitor)
        return monitor.finish()

    def _initialised(self) -> TrainingState:
        """Return the state of a training from the start, after the hooks that are called once."""
        job, state = self.job, TrainingState(self.job)
        precision = state.phase.recipe.precision
        Hooks(job, state.generator).initialise(self._context(state)[0], precision)
        return state

    def _context(self, state: TrainingState) -> tuple[StepContext, StepServices]:
        phase, services = state.phase, StepServices(self.job, state.phase.loader)
        return replace(self.job.context, phase=phase.name, generator=state.generator, services=services), services

    def _train_phase(self, state: TrainingState, monitor: Monitor) -> None:
        """Train the phase from its start, or from where the checkpoint left it."""
        job, phase, seed = self.job, state.phase, state.phase.seed(self.job)
        context, services = self._context(state)
        hooks, precision = Hooks(job, state.generator), phase.recipe.precision
        if not state.begun:
            seed_everything(seed)
            hooks.before_training(context, precision)
            # Each process loads its own share from here on: the workers for whole batches must go.
            if self.group.size > 1:
                phase.loader.close()
            # Every process draws other numbers. The first one draws those of a single process, whatever
            # `before_training` has drawn.
            seed_everything(seed if self.group.first else derive_seed(seed, "process", self.group.rank))
            state.begin_phase()
        if state.stepper is not None:
            monitor.start_phase(measured=overrides(job.method, "before_training"))
            training = PhaseTraining(job, state, state.stepper, context, services)
            try:
                for batch in training.batches():
                    monitor.after_iteration(training.iterate(batch))
            finally:
                training.networks.leave()
        hooks.after_training(context, precision)
        require_finite_weights(context.model, context.step, state.done)

    def _announce(self, state: TrainingState) -> None:
        context, setting, view = self.job.context, self.job.context.setting, self.job.view
        names = [class_names(setting.dataset)[number] for number in setting.steps[context.step].classes]
        classes = ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)})"
        view.start_step(context.step, len(setting.steps), classes, self.job.images, state.iterations, state.done)
        if len(state.phases) > 1:
            lengths = ", ".join(f"{phase.name} ({phase.iterations} iterations)" for phase in state.phases)
            view.note(f"step {context.step}: its phases are {lengths}")
