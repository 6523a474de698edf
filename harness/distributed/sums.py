"""The sum over all processes, with gradients."""

from __future__ import annotations

from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function


class _Sum(Function):
    """The sum over all processes, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def sum_over_all(tensor: Tensor) -> Tensor:
    """Return the sum of all processes' tensors, which have one shape; every process must call it."""
    total: Tensor = _Sum.apply(tensor)
    return total
