"""Work on the pixels of logits a band at a time: what is computed on the way never fills more than a cache.

With 151 classes the logits of one image of 512 x 512 pixels take 158 MB. A loss over them by plain tensor operations
makes several tensors of that size and keeps some of them for its backward pass; in bands it keeps the gradient alone.

A band is n pixels with their classes next to each other: logits are (n, C), labels (n,).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from cispbench.harness.machine.lazy import torch
from cispbench.splits.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

# Of a band's logits in float32. A CPU's cache holds a few such tensors; a GPU is kept busy by much larger ones.
BAND_BYTES = {"cpu": 1024**2, "cuda": 128 * 1024**2}
WHOLE_BYTES = {"cpu": 8 * 1024**2, "cuda": 128 * 1024**2}  # so few are not cut: each band costs some calls

Cost = Callable[..., "Tensor"]
_ADVICE = "Compute what else is learnt by plain tensor operations, outside of it."


def sum_over_pixels(cost: Cost, logits: Tensor, *others: Tensor) -> Tensor:
    """Return the sum of ``cost(logits, *others)`` over all pixels, differentiable once, in ``logits`` alone.

    ``logits`` (B, C, H, W); ``others``: (B, H, W), or (B, K, H, W) with any K. ``cost`` is given bands, logits in
    float32 (n, C) and the others as they are, (n,) or (n, K), and returns (n,). It must treat pixels alike, and
    compute with nothing else that is learnt. Raises ValueError for shapes that differ, MethodError if something else
    would be learnt.
    """
    _check_shapes(logits, others)
    if torch.is_grad_enabled() and any(other.requires_grad for other in others):
        raise MethodError("sum_over_pixels gives no gradient to anything but the logits.", hint=_ADVICE)
    if _is_small(logits):
        return cost(_by_pixel(logits).float(), *map(_by_pixel, others)).sum()
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return torch.stack([cost(z.float(), *rest).sum() for z, *rest in _bands(logits, *others)]).sum()
    total: Tensor = _function()(cost, logits, *others)
    return total


def each_pixel(function: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
    """Return ``function(logits, *others)`` of every pixel, (B, H, W), without gradients.

    It is given bands as ``sum_over_pixels`` gives them, and returns (n,). Raises ValueError for shapes that differ.
    """
    _check_shapes(logits, others)
    with torch.no_grad():
        found = [function(z.float(), *rest) for z, *rest in _bands(logits, *others)]
        return torch.cat(found).view(len(logits), *logits.shape[2:])


@contextmanager
def small_bands() -> Iterator[None]:
    """Cut even small logits into bands on the CPU, so that a check on small images sees what large ones would do."""
    before = BAND_BYTES["cpu"], WHOLE_BYTES["cpu"]
    BAND_BYTES["cpu"], WHOLE_BYTES["cpu"] = 16 * 1024, 0
    try:
        yield
    finally:
        BAND_BYTES["cpu"], WHOLE_BYTES["cpu"] = before


def _check_shapes(logits: Tensor, others: tuple[Tensor, ...]) -> None:
    pixels = len(logits), *logits.shape[2:]
    for other in others:
        if (len(other), *other.shape[-2:]) != pixels or other.dim() not in (3, 4):
            raise ValueError(f"logits {tuple(logits.shape)} and {tuple(other.shape)} are not of the same pixels")


def _bands(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    rows = [_by_pixel(tensor.detach()) for tensor in tensors]
    size = max(1, len(rows[0])) if _is_small(tensors[0]) else _band_size(tensors[0])
    yield from zip(*(torch.split(row, size) for row in rows), strict=True)


def _is_small(logits: Tensor) -> bool:
    return 4 * logits.numel() <= WHOLE_BYTES.get(logits.device.type, WHOLE_BYTES["cuda"])


def _by_pixel(tensor: Tensor) -> Tensor:
    """Return (B, K, H, W) as (B * H * W, K), and (B, H, W) as (B * H * W,): a view in channels_last."""
    return tensor.flatten() if tensor.dim() == 3 else tensor.movedim(1, -1).flatten(0, 2)


def _band_size(logits: Tensor) -> int:
    return max(1, BAND_BYTES.get(logits.device.type, BAND_BYTES["cuda"]) // (4 * logits.shape[1]))


@cache
def _function() -> Any:
    """Return the sum as a function of torch; made at the first use, as torch must not be imported with this module."""

    class SumOverPixels(torch.autograd.Function):
        """The sum, with its gradient, which is taken band by band in the forward pass."""

        @staticmethod
        def forward(ctx: Any, cost: Cost, logits: Tensor, *others: Tensor) -> Tensor:
            gradient = torch.empty_like(logits.detach(), memory_format=torch.channels_last)
            into, sums = torch.split(_by_pixel(gradient), _band_size(logits)), list[Any]()
            with torch.enable_grad():
                for place, (z, *rest) in zip(into, _bands(logits, *others), strict=True):
                    z = z.float().requires_grad_()
                    total = cost(z, *rest).sum()
                    if not sums:
                        _require_nothing_else(total, z)
                    place.copy_(torch.autograd.grad(total, z)[0])
                    sums.append(total.detach())
            ctx.save_for_backward(gradient)
            return torch.stack(sums).sum()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            # In it only with create_graph=True: the second derivative would lack all of this loss, without an error.
            if torch.is_grad_enabled():
                raise MethodError("sum_over_pixels can be differentiated only once.", hint=_ADVICE)
            (gradient,) = ctx.saved_tensors
            return None, gradient * grad, *(None for _ in ctx.needs_input_grad[2:])

    return SumOverPixels.apply


def _require_nothing_else(total: Tensor, logits: Tensor) -> None:
    """Raise MethodError if a cost depends on anything that is learnt besides its logits: it would get no gradient."""
    seen, open_nodes = set(), [total.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", logits) is not logits:
            raise MethodError("sum_over_pixels computes with something else that is learnt.", hint=_ADVICE)
        open_nodes += [before for before, _ in node.next_functions]
