"""What changes while a step is trained, besides the model and the method's own state."""

from __future__ import annotations

from cispbench.harness.training.job import TrainingJob, TrainingLog
from cispbench.harness.training.nonfinite import SkippedIterations
from cispbench.harness.training.optimisation import Stepper


class TrainingState:
    """A training before its first iteration; the loop, the monitor and checkpoints change it from there."""

    def __init__(self, job: TrainingJob) -> None:
        self.iteration = 0  # how many iterations are done
        self.log = TrainingLog()
        self.stepper = Stepper(job.context, job.phase, job.iterations, job.device)
        self.skipped_iterations = SkippedIterations(job.context.step, job.iterations)

    @property
    def skipped(self) -> int:
        """How many updates were left out so far, for any reason (see ``nonfinite.py``)."""
        return self.skipped_iterations.in_all + self.stepper.overflows
