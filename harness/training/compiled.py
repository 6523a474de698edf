"""The networks of a training, compiled by torch if that is asked for, and as they are where that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

BACKEND = "inductor"
SHOWN = 200  # characters of what the compiler says


class CompiledNetworks:
    """Compiles networks in place, and calls them; their parameters and names stay.

    torch compiles at a network's first call. If that fails, ``failed`` is told once why, and all networks go on as they
    are: ``compiled`` is False from then on.
    """

    def __init__(self, networks: Sequence[nn.Module], failed: Callable[[str], None]) -> None:
        self.compiled = bool(networks)
        self._networks, self._failed = networks, failed
        for network in networks:
            network.compile(backend=BACKEND)

    def call(self, network: nn.Module, *inputs: Any, **named: Any) -> Any:
        """Return what a network, or what wraps it, returns for these inputs."""
        try:
            return network(*inputs, **named)
        except Exception as error:
            if not self.compiled or not _is_of_compiler(error):
                raise
            self._give_up(error)
        return network(*inputs, **named)

    def leave(self) -> None:
        """Let the networks be called as they are again: hooks and tests would have them compiled anew."""
        for network in self._networks:
            network._compiled_call_impl = None  # what `compile` has set, and has no function to unset

    def _give_up(self, error: Exception) -> None:
        self.compiled = False
        self.leave()
        why = " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN]  # torch adds a page of advice
        self._failed(f"the network cannot be compiled, and is trained as it is (--compile): {why}")


def _is_of_compiler(error: Exception) -> bool:
    # By the module: the classes differ between versions of torch, and importing them costs seconds.
    names = {cls.__module__ for cls in type(error).__mro__}
    return any(name.startswith(("torch._dynamo", "torch._inductor", "torch._functorch")) for name in names)
