"""An update that takes place only if the iteration is finite, without making the device wait for the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cispbench.splits.errors import RunError


class GuardedUpdate:
    """Update weights, what the optimiser keeps of them, and buffers only if an iteration is finite.

    The optimiser keeps momenta, the buffers are statistics of batch norms.
    ``on_host``: the answer is read first, and an update that is not wanted is not made. On the CPU this costs nothing.
    A GPU would run out of work while the host reads. There the optimiser's kernel is given the answer, and leaves all
    as it is; the optimiser must be a fused one, and RunError is raised for one that cannot do so.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, on_host: bool) -> None:
        self._optimizer, self._on_host = optimizer, on_host
        if not on_host and not getattr(optimizer, "_step_supports_amp_scaling", False):
            raise RunError(
                f"{type(optimizer).__name__} of torch {torch.__version__} cannot leave out an update on the device.",
                hint="Use a version of torch that cispbench supports.",
            )
        self._buffers = list(model.buffers())
        self._old_buffers = [tensor.clone() for tensor in self._buffers]

    def remember_buffers(self) -> None:
        """Copy the buffers, before the network's forward pass changes them."""
        _copy(self._old_buffers, self._buffers)

    def restore_buffers_unless(self, finite: Tensor) -> None:
        """Put the buffers back if the iteration is not finite."""
        if not self._on_host:
            _restore_unless(finite, self._buffers, self._old_buffers)
        elif not finite:
            _copy(self._buffers, self._old_buffers)

    @torch.no_grad()
    def update_if(self, finite: Tensor, update: Callable[[], object]) -> None:
        """Call ``update``, the optimiser's step; without any effect if the iteration is not finite."""
        self.restore_buffers_unless(finite)
        self.update_parameters_if(finite, update)

    @torch.no_grad()
    def update_parameters_if(self, finite: Tensor, update: Callable[[], object]) -> None:
        """Do what ``update_if`` does, and leave the buffers as they are."""
        if self._on_host:
            if finite:
                update()
        else:
            self._update_in_kernel(finite, update)

    def _update_in_kernel(self, finite: Tensor, update: Callable[[], object]) -> None:
        # The attributes through which torch's GradScaler tells fused optimisers the same.
        optimizer: Any = self._optimizer
        optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
        try:
            update()
        finally:
            del optimizer.grad_scale, optimizer.found_inf


@torch.no_grad()
def _copy(target: list[Tensor], source: list[Tensor]) -> None:
    if target:
        torch._foreach_copy_(target, source)


@torch.no_grad()
def _restore_unless(finite: Tensor, new: list[Tensor], old: list[Tensor]) -> None:
    # Not by arithmetic such as new * finite: NaN times 0 is NaN.
    for tensor, before in zip(new, old, strict=True):
        torch.where(finite, tensor, before, out=tensor)
