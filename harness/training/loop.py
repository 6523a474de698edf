"""The training of one step: one loop for every method, model, data set and number of devices.

An iteration works on one *global batch*, as large as the recipe's ``batch``. Each process has a *share* of it, and
works on this share in one or more *micro-batches* (``distributed/division.py``). ``StepTraining.iterate`` is the same
for all of them. With one process and one micro-batch there is nothing to weigh, and the method is not asked to count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from cispbench.harness.distributed.batch_norm import synchronise
from cispbench.harness.distributed.data_parallel import data_parallel, without_all_reduce
from cispbench.harness.machine.devices import autocast
from cispbench.harness.machine.seeds import derive_seed, seed_everything
from cispbench.harness.method import Batch, Output
from cispbench.harness.training.checkpoint import resume
from cispbench.harness.training.job import TrainingJob, TrainingLog
from cispbench.harness.training.micro_batches import TermWeights, cut_share
from cispbench.harness.training.monitor import Monitor
from cispbench.harness.training.nonfinite import DeviceLosses, require_finite_weights
from cispbench.harness.training.shared_base import require_plain_loss
from cispbench.harness.training.state import TrainingState
from cispbench.splits.classes import class_names
from cispbench.splits.errors import MethodError


class StepTraining:
    """One step from its first iteration, or from its last checkpoint, to its last."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.group = job, job.group
        self.division = job.division
        synchronise(job.context.model, job.group, job.device)
        self.network: nn.Module = job.context.model
        self.state = TrainingState(job)
        self.term_weights = TermWeights(job.method, job.context, self.division, job.group)

    def run(self) -> TrainingLog:
        """Train and return the log; Ctrl-C or death leaves the last checkpoint behind.

        Raises StoppedError once ``job.stop`` says so, after a checkpoint; RunError for losses that are NaN again and
        again, and for weights that are NaN (``nonfinite.py``); MethodError for a method that breaks its contract.
        """
        started = time.perf_counter()
        job, model = self.job, self.job.context.model
        self._resume_or_prepare()
        self._announce()
        model.train()
        # Only now: DDP copies the first process's weights to the others, and `before_training` ran in the first alone.
        self.network = data_parallel(model, self.group, job.device)
        monitor = Monitor(job, self.state, started)
        for batch in self._batches():
            monitor.after_iteration(self.iterate(batch))
        job.method.after_training(job.context)
        require_finite_weights(model, job.context.step, self.state.iteration)
        return monitor.finish()

    def iterate(self, batch: Batch) -> DeviceLosses:
        """Train on one global batch, of which ``batch`` is this process's share.

        The result stays on the device: reading it here would make a GPU wait in every iteration.
        """
        job, state, method, context = self.job, self.state, self.job.method, self.job.context
        state.stepper.start_iteration(state.iteration)  # sets the learning rate
        micro_batches = cut_share(batch, self.division, self.group.rank)
        self.term_weights.start_batch(micro_batches, self._previous_output)
        sums: dict[str, Tensor] = {}
        for number, micro_batch in enumerate(micro_batches, start=1):
            # Gradients add up in this process; the last backward pass alone exchanges them with the other processes.
            last = number == len(micro_batches)
            with nullcontext() if last else without_all_reduce(self.network):
                previous = self._previous_output(micro_batch)
                with autocast(job.device, job.phase.precision):
                    output = self.network(micro_batch.images)
                terms = method.losses(micro_batch, output, previous, context)
                if not terms:
                    raise MethodError(f"the method {method.name} returned no loss term at step {context.step}.")
                if state.iteration == 0 and context.step == 0 and method.shared_base:
                    require_plain_loss(method, terms, output, micro_batch)
                terms = self.term_weights.weigh(terms, micro_batch, previous)
                # The graph holds what the backward pass needs of these; the rest must not take memory during it.
                del output, previous
                # DDP divides the sum of the processes' gradients by their number. The gradient of the global batch
                # is the sum: the terms are divided by the counts of the global batch already.
                state.stepper.backward(torch.stack(list(terms.values())).sum() * self.group.size)
            for name, term in terms.items():
                sums[name] = sums[name] + term.detach() if name in sums else term.detach()
        self.term_weights.end_batch()
        # A loss that is NaN in one process must keep all of them from the update, or their weights would differ.
        not_finite = (~torch.stack(list(sums.values())).sum().isfinite()).int()
        finite = state.stepper.update(self.group.sum(not_finite) == 0)
        state.iteration += 1
        return DeviceLosses(state.iteration, batch.ids, sums, finite)

    def _previous_output(self, micro_batch: Batch) -> Output | None:
        previous = self.job.context.previous
        if previous is None:
            return None
        with autocast(self.job.device, self.job.phase.precision), torch.no_grad():
            output: Output = previous(micro_batch.images)
        return output

    def _batches(self) -> Iterator[Batch]:
        """Yield this process's shares, from the iteration on that is next, over as many epochs as needed."""
        job, state, loader = self.job, self.state, self.job.loader
        if self.group.size > 1:
            loader = loader.share(self.division, self.group.rank)
        while state.iteration < job.iterations:
            epoch, start = divmod(state.iteration, len(loader))
            for batch in loader.epoch(epoch, start):
                yield batch.to(job.device)
                if state.iteration == job.iterations:
                    return

    def _resume_or_prepare(self) -> None:
        seed_everything(self.job.seed)
        if self.job.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.job.device)
        resumed = resume(self.job)
        if resumed is None:
            self._prepare()
        else:
            self.state = resumed

    def _prepare(self) -> None:
        """Let the first process call `before_training` on all of the step's data, and send the others the result."""
        job, group = self.job, self.group
        if group.first:
            with autocast(job.device, job.phase.precision):
                job.method.before_training(job.context, (batch.to(job.device) for batch in job.loader.epoch(0)))
        if group.size > 1:
            # Each process loads its own share from here on: the workers for whole batches must go.
            job.loader.close()
            state = group.decide({name: tensor.cpu() for name, tensor in job.method.state_dict().items()})
            if not group.first:
                job.method.load_state_dict({name: tensor.to(job.device) for name, tensor in state.items()})
        # Every process draws other numbers. The first one draws those of a single process, whatever
        # `before_training` has drawn.
        seed_everything(job.seed if group.first else derive_seed(job.seed, "process", group.rank))

    def _announce(self) -> None:
        context, setting = self.job.context, self.job.context.setting
        names = [class_names(setting.dataset)[number] for number in setting.steps[context.step].classes]
        classes = ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)})"
        self.job.view.start_step(
            context.step, len(setting.steps), classes, self.job.images, self.job.iterations, self.state.iteration
        )
