"""Count the operations of a network, and the bytes it keeps for its backward pass, on tensors without data.

Such tensors (torch's device "meta") have shapes and types alone, so that a pass takes no memory and little time. Three
things would be counted wrongly there, and are put right here: attention would keep all its scores, which no fused
kernel does; there is no autocast; and torch counts the gradient of a grouped convolution's weights as if there were no
groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from cispbench.harness.cost.flops import Flops
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.models.output import Features

META = torch.device("meta")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class PassCount:
    """One image: operations forward and backward, and ``saved``, the bytes kept from the one to the other."""

    forward: Flops
    backward: Flops
    saved: float


@dataclass(frozen=True)
class Trunk:
    """The trunk's pass over ``batch`` images; ``features``: what it gives to the head, on the device meta."""

    count: PassCount
    features: Features
    batch: int
    kept: Mapping[int, Any] = field(repr=False)  # the storages that are kept, by their address


def count_trunk(network: IncrementalModel, size: tuple[int, int], batch: int, precision: str) -> Trunk:
    """Count ``network.features`` on images of ``size`` (height, width); what nothing learns has no backward pass.

    ``network``: on the device meta. ``batch``: as many images as a batch norm needs; the count is that of one image.
    """
    kept: dict[int, Any] = {}
    images = torch.empty(batch, 3, *size, device=META)
    features, forward = _counted(lambda: network.features(images), network, precision, kept)
    backward = _backward(features.decoded)
    count = PassCount(forward * (1 / batch), backward * (1 / batch), _bytes(kept) / batch)
    return Trunk(count, _detached(features), batch, kept)


def count_head(network: IncrementalModel, trunk: Trunk, precision: str) -> PassCount:
    """Count ``network.from_features``, which depends on the classes, with the logits of full size."""
    kept: dict[int, Any] = {}
    features = _detached(trunk.features)
    output, forward = _counted(lambda: network.from_features(features), network, precision, kept)
    backward = _backward(output.logits)
    for address in trunk.kept:  # a map that both keep takes memory once
        kept.pop(address, None)
    share = 1 / trunk.batch
    return PassCount(forward * share, backward * share, _bytes(kept) * share)


def _counted(
    run: Callable[[], Any], network: IncrementalModel, precision: str, kept: dict[int, Any]
) -> tuple[Any, Flops]:
    """Return what ``run`` returns and its operations; add the storages that it keeps to ``kept``."""
    weights = {_address(tensor) for tensor in (*network.parameters(), *network.buffers())}
    autocast = _MetaAutocast(HALF.get(precision), weights)

    def keep(tensor: Tensor) -> Tensor:
        if _address(tensor) not in weights and _address(tensor) not in autocast.addresses:
            kept[_address(tensor)] = tensor.untyped_storage()
        return tensor

    counter = _counter()
    with counter, saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        result = run()
    return result, _flops(counter)


def _backward(result: Tensor) -> Flops:
    if not result.requires_grad:
        return Flops()
    with _counter() as counter:
        torch.autograd.backward([result], [torch.empty_like(result)])
    return _flops(counter)


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _flops(counter: FlopCounterMode) -> Flops:
    products = convolutions = 0
    for operator, number in counter.get_flop_counts().get("Global", {}).items():
        if "conv" in str(operator):
            convolutions += number
        else:
            products += number
    return Flops(products, convolutions)


def _convolution_backward(
    gradient: Sequence[int], inputs: Sequence[int], weight: Sequence[int], _bias: object, _stride: object,
    _padding: object, _dilation: object, transposed: bool, _output_padding: object, _groups: int,
    wanted: Sequence[bool], **_: object,
) -> int:  # fmt: skip
    """Count each gradient, of the input and of the weights, as the forward pass: every product occurs once in it."""
    positions = (inputs if transposed else gradient)[2:]
    products = gradient[0] * torch.Size(positions).numel() * torch.Size(weight).numel()
    return 2 * products * sum(wanted[:2])


def _address(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata  # data_ptr() is 0 for all tensors without data
    return address


def _bytes(kept: Mapping[int, Any]) -> int:
    return sum(storage.nbytes() for storage in kept.values())


def _detached(features: Features) -> Features:
    """Return features that begin a graph of their own, with gradients where the trunk learns; equal ones stay so."""
    made: dict[int, Tensor] = {}

    def leaf(tensor: Tensor) -> Tensor:
        return made.setdefault(id(tensor), tensor.detach().requires_grad_(tensor.requires_grad))

    stages = tuple(leaf(stage) for stage in features.stages)
    return replace(features, encoded=leaf(features.encoded), stages=stages, decoded=leaf(features.decoded))


class _MetaAutocast(TorchFunctionMode):
    """Do what autocast does on real devices, and attention without keeping its scores.

    ``addresses``: the storages of weights in half precision, which autocast keeps once, whatever the batch is.
    """

    def __init__(self, half: torch.dtype | None, weights: set[int]) -> None:
        super().__init__()
        self._half, self._weights = half, weights
        self._lowered_weights: dict[int, Tensor] = {}
        self.addresses: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if self._half is not None and func in _in_half():
            args, named = tuple(map(self._lowered, args)), {key: self._lowered(one) for key, one in named.items()}
        elif self._half is not None and func in _in_full():
            args, named = tuple(map(_raised, args)), {key: _raised(one) for key, one in named.items()}
        if func is functional.scaled_dot_product_attention:
            query, key, value = (*args, *(named[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            return _FusedAttention.apply(query, key, value)
        return func(*args, **named)

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if _address(value) not in self._weights:
            return value.to(self._half)
        if id(value) not in self._lowered_weights:
            self._lowered_weights[id(value)] = value.to(self._half)
            self.addresses.add(_address(self._lowered_weights[id(value)]))
        return self._lowered_weights[id(value)]


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@cache
def _in_half() -> frozenset[Any]:
    """The functions that autocast calls with tensors of half precision."""
    return frozenset({
        functional.linear, functional.conv1d, functional.conv2d, functional.conv3d, functional.conv_transpose2d,
        torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.addmm,
        torch.baddbmm, torch.einsum, functional.scaled_dot_product_attention,
    })  # fmt: skip


@cache
def _in_full() -> frozenset[Any]:
    """The functions that autocast calls with tensors of full precision, as far as they occur in networks."""
    return frozenset({
        functional.layer_norm, functional.group_norm, functional.softmax, torch.softmax, Tensor.softmax,
        functional.log_softmax, torch.log_softmax, Tensor.log_softmax,
    })  # fmt: skip


class _FusedAttention(torch.autograd.Function):
    """The products of attention; it keeps what fused kernels keep: inputs, output, and a sum for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(-2, -1)
        # In memory the heads of a token lie side by side, as fused kernels write them: what joins them copies nothing.
        mixed = (scores @ value).transpose(-2, -3).contiguous().transpose(-2, -3)
        ctx.save_for_backward(query, key, value, mixed, torch.empty(scores.shape[:-1], device=META))
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,), (query, key, value, _, _) = gradients, ctx.saved_tensors
        scores = gradient @ value.transpose(-2, -1)  # of the same shape as the scores themselves
        return scores @ key, scores.transpose(-2, -1) @ query, scores.transpose(-2, -1) @ gradient
