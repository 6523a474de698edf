"""What the context offers a method during a step: passes over its images, sums over devices, and the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.distributed.sums import sum_over_all
from cispbench.harness.method import Batch
from cispbench.harness.step import View
from cispbench.harness.training.job import TrainingJob
from cispbench.splits.errors import MethodError


class StepServices:
    """The services of one phase; ``iteration`` says when an iteration runs, as some are for it alone, or not for it.

    ``loader``: of the phase.
    """

    def __init__(self, job: TrainingJob, loader: TrainLoader) -> None:
        self._job, self._loader = job, loader
        self._iterating = False
        self._micro_batches = 1
        self._notes: dict[str, list[Tensor]] = {}

    @contextmanager
    def iteration(self, micro_batches: int = 1) -> Iterator[None]:
        """Run an iteration, which begins with no notes; ``micro_batches``: how many each device works on."""
        self._notes = {}
        self._iterating, self._micro_batches = True, micro_batches
        try:
            yield
        finally:
            self._iterating = False

    def notes(self) -> dict[str, Tensor]:
        """Return what this process adds to each noted number: a mean over the parts of the batch, over all devices."""
        size = self._job.group.size
        return {name: torch.stack(values).double().mean() / size for name, values in self._notes.items()}

    def batches(self, view: View, size: int | None, ids: Sequence[str] | None) -> Iterable[Batch]:
        """See ``StepContext.batches``."""
        job, method = self._job, self._job.method.name
        if self._iterating:
            raise MethodError(
                f"the method {method} reads the step's images within an iteration (context.batches).",
                hint="Read them in initialise, before_training or after_training, and keep what is measured.",
            )
        if job.passes is not None:
            return job.passes(self._loader)(view, size, ids)
        if (view, size, ids) != ("train", None, None):
            raise MethodError(f"the method {method} asks for images that are not there (context.batches).")
        return (batch.to(job.device) for batch in self._loader.epoch(0))

    def batch_sum(self, tensor: Tensor) -> Tensor:
        """See ``StepContext.batch_sum``."""
        if self._iterating and self._micro_batches > 1:
            raise MethodError(
                f"the method {self._job.method.name} sums over the batch (context.batch_sum), and is given one of "
                f"{self._micro_batches} micro-batches at a time.",
                hint="Set micro_batches = False in its class: --micro-batch is then refused.",
            )
        # Outside the iterations the hooks run on one device, which sees all images.
        return sum_over_all(tensor) if self._iterating and self._job.group.size > 1 else tensor

    def log(self, name: str, value: Tensor) -> None:
        """See ``StepContext.log``."""
        if not self._iterating:
            raise MethodError(f"the method {self._job.method.name} logs {name!r} where no iteration runs.")
        self._notes.setdefault(name, []).append(value.detach())
