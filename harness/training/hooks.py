"""The hooks outside the iterations: called on the first process alone, and the others are sent the results."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cispbench.harness.machine.devices import autocast
from cispbench.harness.method import StepContext
from cispbench.harness.training.job import TrainingJob
from cispbench.harness.wrapper import overrides


class Hooks:
    """Calls a method's hooks with the networks in evaluation mode, without gradients, and under autocast.

    ``generator``: the common one, whose state is sent as well. A hook that the method does not override costs nothing.
    """

    def __init__(self, job: TrainingJob, generator: torch.Generator) -> None:
        self._job, self._generator = job, generator

    def initialise(self, context: StepContext, precision: str) -> None:
        """Set what the step adds to the network."""
        self._call("initialise", lambda: self._job.method.initialise(context), precision, network=True)

    def before_training(self, context: StepContext, precision: str) -> None:
        """Measure what a phase needs."""
        hook = self._job.method.before_training
        self._call("before_training", lambda: hook(context, context.batches()), precision, network=False)

    def after_training(self, context: StepContext, precision: str) -> None:
        """End a phase."""
        self._call("after_training", lambda: self._job.method.after_training(context), precision, network=True)

    def _call(self, name: str, hook: Callable[[], None], precision: str, *, network: bool) -> None:
        if not overrides(self._job.method, name):
            return
        job, model = self._job, self._job.context.model
        model.eval()
        if job.group.first:
            with autocast(job.device, precision), torch.no_grad():
                hook()
        if job.group.size == 1:
            return
        weights = {key: tensor.cpu() for key, tensor in model.state_dict().items()} if network else {}
        state = {key: tensor.cpu() for key, tensor in job.method.state_dict().items()}
        weights, state, drawn = job.group.decide((weights, state, self._generator.get_state()))
        if not job.group.first:
            if network:
                model.load_state_dict(weights)
            job.method.load_state_dict({key: tensor.to(job.device) for key, tensor in state.items()})
            self._generator.set_state(drawn)
