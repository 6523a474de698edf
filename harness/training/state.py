"""What changes while a step is trained, besides the model and the method's own state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

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
            self.stepper = Stepper(job.context, phase.recipe, phase.iterations, job.device)

    def next_phase(self) -> None:
        """Go on to the phase after this one."""
        self.go_to(self.number + 1, 0, self.overflows)

    def go_to(self, number: int, iteration: int, overflows_before: int) -> None:
        """Set where the training is, in a phase that is not begun."""
        self.number, self.iteration, self.overflows_before = number, iteration, overflows_before
        self.begun, self.stepper = False, None


class StateBefore:
    """Copies of a method's state before an iteration, to be taken back if the iteration is not finite.

    Values are copied and not looked at: a write through ``.data`` or NumPy leaves no trace on a tensor.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._copies = {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def taken_back(self, now: Mapping[str, Tensor], finite: Tensor) -> dict[str, Tensor] | None:
        """Return the state that the method must have after the iteration, None if it may keep the one of ``now``.

        On a GPU that is a state in any case, chosen there: reading ``finite`` would make it wait.
        """
        if finite.device.type != "cpu" and self._is_like(now, finite.device):
            return {name: torch.where(finite, now[name], copy) for name, copy in self._copies.items()}
        return None if finite else self._copies

    def _is_like(self, now: Mapping[str, Tensor], device: torch.device) -> bool:
        """Return whether ``now`` has tensors of the same names and shapes, all on the device, to choose from."""
        return now.keys() == self._copies.keys() and all(
            copy.device == now[name].device == device and (copy.shape, copy.dtype) == (now[name].shape, now[name].dtype)
            for name, copy in self._copies.items()
        )
