"""Work on the pixels of logits a band at a time: what is computed on the way never fills more than a cache.

With 151 classes the logits of one image of 512 x 512 pixels take 158 MB. A loss over them by plain tensor operations
makes several tensors of that size and keeps some of them for its backward pass; in bands it keeps the gradient alone.

A band is n pixels with their classes next to each other: logits are (n, C), labels (n,).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cispbench.harness.machine.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

# Of a band's logits in float32. A CPU's cache holds a few such tensors; a GPU is kept busy by much larger ones.
BAND_BYTES = {"cpu": 1024**2, "cuda": 128 * 1024**2}
WHOLE_BYTES = {"cpu": 8 * 1024**2, "cuda": 128 * 1024**2}  # so few are not cut: each band costs some calls

Cost = Callable[..., "Tensor"]


def sum_over_pixels(cost: Cost, logits: Tensor, *others: Tensor) -> Tensor:
    """Return the sum of ``cost(logits, *others)`` over all pixels, differentiable in ``logits`` alone.

    ``logits`` (B, C, H, W); ``others``: (B, H, W), or (B, K, H, W) with any K. ``cost`` is given bands, logits in
    float32 (n, C) and the others as they are, (n,) or (n, K), and returns (n,). It must treat pixels alike.
    """
    if _is_small(logits):
        return cost(_by_pixel(logits).float(), *map(_by_pixel, others)).sum()
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return torch.stack([cost(z.float(), *rest).sum() for z, *rest in _bands(logits, *others)]).sum()
    total: Tensor = _summed()(cost, logits, *others)
    return total


def each_pixel(function: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
    """Return ``function(logits, *others)`` of every pixel, (B, H, W), without gradients.

    It is given bands as ``sum_over_pixels`` gives them, and returns (n,).
    """
    with torch.no_grad():
        found = [function(z.float(), *rest) for z, *rest in _bands(logits, *others)]
        return torch.cat(found).view(len(logits), *logits.shape[2:])


def _bands(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    rows = [_by_pixel(tensor.detach()) for tensor in tensors]
    size = len(rows[0]) if _is_small(tensors[0]) else _band_size(tensors[0])
    yield from zip(*(torch.split(row, size) for row in rows), strict=True)


def _is_small(logits: Tensor) -> bool:
    return 4 * logits.numel() <= WHOLE_BYTES.get(logits.device.type, 0)


def _by_pixel(tensor: Tensor) -> Tensor:
    """Return (B, K, H, W) as (B * H * W, K), and (B, H, W) as (B * H * W,): a view in channels_last."""
    return tensor.flatten() if tensor.dim() == 3 else tensor.movedim(1, -1).flatten(0, 2)


def _band_size(logits: Tensor) -> int:
    return max(1, BAND_BYTES.get(logits.device.type, BAND_BYTES["cuda"]) // (4 * logits.shape[1]))


def _summed() -> Callable[..., Tensor]:
    # Made at the first use: the class needs torch, which must not be imported with this module.
    global _FUNCTION
    if _FUNCTION is None:
        _FUNCTION = _make_function()
    return _FUNCTION


_FUNCTION: Callable[..., Tensor] | None = None


def _make_function() -> Any:
    class SumOverPixels(torch.autograd.Function):
        """The sum, with its gradient, which is taken band by band in the forward pass."""

        @staticmethod
        def forward(ctx: Any, cost: Cost, logits: Tensor, *others: Tensor) -> Tensor:
            gradient = torch.empty_like(logits.detach(), memory_format=torch.channels_last)
            into, sums = torch.split(_by_pixel(gradient), _band_size(logits)), []
            with torch.enable_grad():
                for place, (z, *rest) in zip(into, _bands(logits, *others), strict=True):
                    z = z.float().requires_grad_()
                    total = cost(z, *rest).sum()
                    place.copy_(torch.autograd.grad(total, z)[0])
                    sums.append(total.detach())
            ctx.save_for_backward(gradient)
            return torch.stack(sums).sum()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            (gradient,) = ctx.saved_tensors
            return None, gradient * grad, *(None for _ in ctx.needs_input_grad[2:])

    return SumOverPixels.apply
