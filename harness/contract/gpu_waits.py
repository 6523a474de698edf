"""Which operators make a GPU wait for the CPU although their result has a size that is known without any value.

They are copies between the devices, indices that lie on the CPU, and a few kernels of CUDA that read a value inside.
``torch.cuda.set_sync_debug_mode`` finds the same on a real GPU (tests/gpu/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

GPU = torch.device("cuda", 0)
Kind = Literal["devices", "read", "copy", "kernel"]  # see ``imitated_gpu.Sighting``


def hidden_wait(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kind | None:
    """Return how an operator makes a GPU wait, None if it does not, or if the fake tensors tell."""
    waits = _WAITS.get(name)
    return None if waits is None else waits(args, kwargs)


def _of_copy(source: Tensor, target: torch.device, non_blocking: bool) -> Kind | None:
    if source.device.type == target.type:
        return None
    if target.type == "cpu":
        return "read"  # whatever non_blocking says: the values are not there before the GPU is waited for
    return None if non_blocking else "copy"


def _to_copy(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kind | None:
    target = kwargs.get("device")
    return None if target is None else _of_copy(args[0], torch.device(target), bool(kwargs.get("non_blocking")))


def _copy(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kind | None:
    non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking")
    return _of_copy(args[1], args[0].device, bool(non_blocking))


def _index(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kind | None:
    indices = [index for index in args[1] if isinstance(index, Tensor)]
    return "copy" if on_gpu(args[0]) and not all(on_gpu(index) for index in indices) else None


def _index_put(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kind | None:
    masks = [index for index in args[1] if isinstance(index, Tensor) and index.dtype == torch.bool]
    # A single value under a mask is filled in; several must be counted first.
    if on_gpu(args[0]) and masks and args[2].numel() > 1:
        return "read"
    return _index(args, kwargs)


def _isin(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kind | None:
    elements, tests = args[0], args[1]
    if not isinstance(elements, Tensor) or not isinstance(tests, Tensor) or not on_gpu(elements):
        return None
    # From this size on torch sorts both and counts the distinct ones (ATen/native/TensorCompare.cpp).
    return "kernel" if tests.numel() >= 10.0 * elements.numel() ** 0.145 else None


def _histc(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kind | None:
    bounds = (args[2] if len(args) > 2 else kwargs.get("min", 0)), (args[3] if len(args) > 3 else kwargs.get("max", 0))
    return "kernel" if on_gpu(args[0]) and bounds[0] == bounds[1] else None


def _check_errors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kind | None:
    return "kernel" if on_gpu(args[0]) else None


def _asked_to_check(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kind | None:
    return _check_errors(args, kwargs) if kwargs.get("check_errors") else None


# They look inside whether they have converged, or how large a norm is.
_DECOMPOSITIONS = (
    "_linalg_svd", "_linalg_eigh", "linalg_eig", "linalg_eigvals", "linalg_pinv", "linalg_matrix_exp", "cholesky",
    "cholesky_inverse",
)  # fmt: skip
# They look at it if they are asked to; torch.linalg.inv, solve and others ask by an operator of their own.
_CHECKED = ("linalg_inv_ex", "linalg_cholesky_ex", "_linalg_solve_ex", "linalg_lu_factor_ex", "linalg_ldl_factor_ex")

_WAITS: dict[str, Callable[[Sequence[Any], Mapping[str, Any]], Kind | None]] = {
    "_to_copy": _to_copy, "copy_": _copy, "index": _index, "index_put": _index_put, "index_put_": _index_put,
    "_index_put_impl_": _index_put, "isin": _isin, "histc": _histc, "_linalg_check_errors": _check_errors,
    **dict.fromkeys(_DECOMPOSITIONS, _check_errors), **dict.fromkeys(_CHECKED, _asked_to_check),
}  # fmt: skip


def on_gpu(value: Any) -> bool:
    """Return whether a value is a tensor on a GPU, or a list with one."""
    if isinstance(value, list | tuple):
        return any(on_gpu(one) for one in value)
    return isinstance(value, Tensor) and value.device.type == GPU.type
