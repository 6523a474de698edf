"""torch that is loaded at the first use of one of its names.

Importing torch takes seconds, and a plan or a list of recipes needs only the options of the methods. A module that says
``from cispbench.harness.machine.lazy import torch`` uses it as usual, but in functions only: a decorator or a constant
would load it at once.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["functional", "torch"]

if TYPE_CHECKING:
    import torch
    from torch.nn import functional
else:

    class _Lazy(ModuleType):
        """Stands for a module until one of its names is asked for."""

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self.__name__), name)

    torch = _Lazy("torch")
    functional = _Lazy("torch.nn.functional")
