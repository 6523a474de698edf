"""What changes while a step is trained, besides the model and the method's own state."""

from __future__ import annotations

import torch

from cispbench.harness.machine.seeds import derive_seed
from cispbench.harness.training.job import Phase, TrainingJob, TrainingLog, phases_of
from cispbench.harness.training.nonfinite import SkippedIterations
from cispbench.harness.training.optimisation import Stepper


class TrainingState:
    """A training before its first phase; the loop, the monitor and checkpoints change it from there.

    ``number``: the phase that is trained, from 0. ``begun``: whether its ``before_training`` is done. ``stepper``: its
    optimiser; None before that, and for a phase of hooks alone. ``iteration``: how many of its iterations are done.
    ``generator``: see ``StepContext.generator``.
    """

    def __init__(self, job: TrainingJob) -> None:
        self._job = job
        self.phases = phases_of(job)
        self.number = 0
        self.iteration = 0
        self.begun = False
        self.stepper: Stepper | None = None
        self.log = TrainingLog(planned=self.iterations)
        self.skipped_iterations = SkippedIterations(job.context.step, self.iterations)
        self.generator = torch.Generator().manual_seed(derive_seed(job.seed, "common"))
        self.overflows_before = 0  # in the phases before

    @property
    def phase(self) -> Phase:
        """The phase that is trained."""
        return self.phases[self.number]

    @property
    def last_phase(self) -> bool:
        """Whether no phase comes after it."""
        return self.number == len(self.phases) - 1

    @property
    def iterations(self) -> int:
        """The iterations of all phases."""
        return sum(phase.iterations for phase in self.phases)

    @property
    def done(self) -> int:
        """How many iterations of all phases are done."""
        return self.phase.before + self.iteration

    @property
    def overflows(self) -> int:
        """How many updates fp16's GradScaler left out, see ``Stepper``."""
        return self.overflows_before + (0 if self.stepper is None else self.stepper.overflows)

    @property
    def skipped(self) -> int:
        """How many updates were left out so far, for any reason (see ``nonfinite.py``)."""
        return self.skipped_iterations.in_all + self.overflows

    def begin_phase(self) -> None:
        """Note that the phase has begun, and make its optimiser."""
        job, phase = self._job, self.phase
        self.begun = True
        if phase.iterations > 0:
            self.stepper = Stepper(job.context.model, phase.recipe, phase.iterations, job.device)

    def next_phase(self) -> None:
        """Go on to the phase after this one."""
        self.go_to(self.number + 1, 0, self.overflows)

    def go_to(self, number: int, iteration: int, overflows_before: int) -> None:
        """Set where the training is, in a phase that is not begun."""
        self.number, self.iteration, self.overflows_before = number, iteration, overflows_before
        self.begun, self.stepper = False, None
