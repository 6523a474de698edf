"""Optimisers of torch without its compiler, which they import at their first use: a second of every process."""

from __future__ import annotations

import inspect
from functools import cache
from typing import TypeVar

import torch

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)

# Functions that torch marks as not to be compiled.
_MARKED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


@cache
def uncompiled(kind: type[Kind]) -> type[Kind]:
    """Return a kind of optimiser, such as ``torch.optim.SGD``, whose functions are the same without that mark."""
    functions = {name: inspect.unwrap(getattr(kind, name)) for name in _MARKED}
    functions["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), functions)
