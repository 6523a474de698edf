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
        self.stepper = Stepper(job.context.model, job.phase, job.iterations, job.device)
        self.skipped_iterations = SkippedIterations(job.context.step, job.iterations)
        self._fp16 = job.phase.precision == "fp16"

    @property
    def skipped(self) -> int:
        """The count that the log and checkpoints hold, which differs for fp16 (see ``nonfinite.py``)."""
        return self.stepper.overflows if self._fp16 else self.skipped_iterations.in_all

    @skipped.setter
    def skipped(self, count: int) -> None:
        self.stepper.overflows, self.skipped_iterations.in_all = (count, 0) if self._fp16 else (0, count)
