"""The iterations of one phase: the same code for every method, model, data set and number of devices.

An iteration works on one *global batch*, as large as the recipe's ``batch``. Each process has a *share* of it, and
works on this share in one or more *micro-batches* (``distributed/division.py``). With one process and one micro-batch
there is nothing to weigh, and the method is not asked to count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cispbench.harness.distributed.data_parallel import data_parallel, without_all_reduce
from cispbench.harness.machine.devices import autocast
from cispbench.harness.method import Batch, Output, StepContext
from cispbench.harness.training.compiled import CompiledNetworks
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.training.micro_batches import TermWeights, cut_share
from cispbench.harness.training.nonfinite import DeviceLosses
from cispbench.harness.training.optimisation import Stepper
from cispbench.harness.training.services import StepServices
from cispbench.harness.training.state import StateBefore, TrainingState
from cispbench.harness.training.trunk import shares_trunk, trunk_features
from cispbench.harness.wrapper import overrides
from cispbench.splits.errors import MethodError


class PhaseTraining:
    """The iterations of the phase that ``state`` is in; its optimiser is there."""

    def __init__(
        self, job: TrainingJob, state: TrainingState, stepper: Stepper, context: StepContext, services: StepServices
    ) -> None:
        self.job, self.group, self.state, self.stepper = job, job.group, state, stepper
        self.phase, self.context, self.services = state.phase, context, services
        self.division = self.phase.division(job)
        self.term_weights = TermWeights(job.method, context, self.division, job.group)
        model = context.model.train()
        learnt = {id(parameter) for parameter in stepper.parameters()}
        self._learnt = {name: p for name, p in model.named_parameters() if id(p) in learnt}
        self._one_trunk = job.method.reads_previous and shares_trunk(context, learnt)
        self._after_gradients = self._show_gradients if overrides(job.method, "after_gradients") else None
        # Last: DDP copies the first process's weights to the others.
        self.network: nn.Module = data_parallel(model, job.group, job.device)
        # In place, so that what wraps them calls them compiled, too.
        compiled = [one for one in (model, context.previous) if one is not None] if job.acceleration.compile else []
        self.networks = CompiledNetworks(compiled, job.view.warn, job.device)

    def iterate(self, batch: Batch) -> DeviceLosses:
        """Train on one global batch, of which ``batch`` is this process's share.

        The result stays on the device: reading it here would make a GPU wait in every iteration.
        """
        with self.services.iteration(self.division.micro_batches):
            return self._iterate(batch)

    def _iterate(self, batch: Batch) -> DeviceLosses:
        job, state, stepper, method = self.job, self.state, self.stepper, self.job.method
        stepper.start_iteration(state.iteration)  # sets the learning rate
        before = self._state_before()
        micro_batches = [self._prepared(part) for part in cut_share(batch, self.division, self.group.rank)]
        self.term_weights.start_batch(micro_batches, lambda part: self._previous_output(part, self._features(part)))
        sums: dict[str, Tensor] = {}
        for number, micro_batch in enumerate(micro_batches, start=1):
            # Gradients add up in this process; the last backward pass alone exchanges them with the other processes.
            last = number == len(micro_batches)
            with nullcontext() if last else without_all_reduce(self.network):
                features = self._features(micro_batch)
                previous = self._previous_output(micro_batch, features)
                with autocast(job.device, self.phase.recipe.precision):
                    output = self.networks.call(self.network, *micro_batch.inputs, **features)
                terms = method.losses(micro_batch, output, previous, self.context)
                if not terms:
                    raise MethodError(f"the method {method.name} returned no loss term at step {self.context.step}.")
                terms = self.term_weights.weigh(terms, micro_batch, previous)
                # The graph holds what the backward pass needs of these; the rest must not take memory during it.
                del output, previous, features
                # DDP divides the sum of the processes' gradients by their number. The gradient of the global batch
                # is the sum: the terms are divided by the counts of the global batch already.
                with self.networks.backward_pass():
                    stepper.backward(torch.stack(list(terms.values())).sum() * self.group.size)
            for name, term in terms.items():
                sums[name] = sums[name] + term.detach() if name in sums else term.detach()
        self.term_weights.end_batch()
        # A loss that is NaN in one process must keep all of them from the update, or their weights would differ.
        not_finite = (~torch.stack(list(sums.values())).sum().isfinite()).int()
        finite = stepper.update(self.group.sum(not_finite) == 0, self._after_gradients)
        if before is not None:
            right = before.taken_back(method.state_dict(), finite)
            if right is not None:
                method.load_state_dict(right)
        state.iteration += 1
        state.log.compiled |= self.networks.compiled
        terms = {self.phase.logged(name): term for name, term in sums.items()}
        notes = {self.phase.logged(name): value for name, value in self.services.notes().items()}
        return DeviceLosses(state.done, batch.ids, terms, finite, notes)

    def batches(self) -> Iterator[Batch]:
        """Yield this process's shares, from the iteration on that is next, over as many epochs as needed."""
        state, loader = self.state, self.phase.loader
        if self.group.size > 1:
            loader = loader.share(self.division, self.group.rank)
        while state.iteration < self.phase.iterations:
            epoch, start = divmod(state.iteration, len(loader))
            for batch in loader.epoch(epoch, start):
                yield batch.to(self.job.device)
                if state.iteration == self.phase.iterations:
                    return

    @torch.no_grad()
    def _prepared(self, micro_batch: Batch) -> Batch:
        # Once for each, as it may draw at random; the counts of the global batch need all of them.
        prepared = self.job.method.prepare(micro_batch, self.context)
        if prepared is not micro_batch:
            _require_whole(prepared, self.job.method.name)
        return prepared

    def _features(self, micro_batch: Batch) -> dict[str, Any]:
        """Return what both networks are given besides the images: the features of their trunk, if they have one."""
        previous = self.context.previous
        if previous is None or not self._one_trunk:
            return {}
        with autocast(self.job.device, self.phase.recipe.precision):
            return {"features": trunk_features(previous, micro_batch)}

    def _previous_output(self, micro_batch: Batch, features: Mapping[str, Any]) -> Output | None:
        previous = self.context.previous
        if previous is None or not self.job.method.reads_previous:
            return None
        with autocast(self.job.device, self.phase.recipe.precision), torch.no_grad():
            output: Output = self.networks.call(previous, *micro_batch.inputs, **features)
        return output

    def _state_before(self) -> StateBefore | None:
        """Return the state that may have to be taken back, None without any.

        ``losses`` may change it only where a batch is never cut: only then is it copied in each iteration.
        """
        if self.job.method.micro_batches:
            return None
        state = self.job.method.state_dict()
        return StateBefore(state) if state else None

    @torch.no_grad()
    def _show_gradients(self) -> None:
        found = {name: p.grad for name, p in self._learnt.items() if p.grad is not None}
        self.job.method.after_gradients(found, self.context)


def _require_whole(batch: Batch, method: str) -> None:
    """Raise MethodError unless all of a prepared batch has as many images: terms are weighed by how many it names."""
    tensors = {"images": batch.images, "target": batch.target, "origin": batch.origin, **batch.companions}
    lengths = {name: len(tensor) for name, tensor in tensors.items() if tensor is not None} | {"ids": len(batch.ids)}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise MethodError(
            f"the batch that {method} returns from `prepare` has lengths that differ: {found}.",
            hint="Lengthen or shorten images, target, ids, origin and companions alike.",
        )
