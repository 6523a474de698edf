"""The networks of a training, compiled by torch if that is asked for, and as they are where that fails.

torch compiles piece by piece, and pieces before the one that fails have run by then. So a call begins anew from what it
has changed: the network's buffers (statistics of batch norms) and the RNG states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cispbench.harness.machine.seeds import random_states, restore_random_states
from cispbench.splits.errors import RunError

BACKEND = "inductor"
SHOWN = 200  # characters of what the compiler says


class CompiledNetworks:
    """Compiles networks in place, and calls them; their parameters and names stay.

    torch compiles at a network's first call. If that fails, ``failed`` is told once why, and all networks go on as they
    are: ``compiled`` is False from then on. ``device``: the one that trains.
    """

    def __init__(self, networks: Sequence[nn.Module], failed: Callable[[str], None], device: torch.device) -> None:
        self.compiled = bool(networks)
        self._networks, self._failed, self._device = networks, failed, device
        for network in networks:
            network.compile(backend=BACKEND)

    def call(self, network: nn.Module, *inputs: Any, **named: Any) -> Any:
        """Return what a network, or what wraps it, returns for these inputs."""
        if self.compiled:
            # Before each call, not the first alone: torch compiles anew for images of another size.
            buffers = {name: tensor.clone() for name, tensor in network.named_buffers()}
            states = random_states(self._device)
            try:
                return network(*inputs, **named)
            except Exception as error:
                if not _is_of_compiler(error):
                    raise
                self._give_up(error)
            restore_random_states(states, self._device)
            with torch.no_grad():
                for name, tensor in network.named_buffers():
                    tensor.copy_(buffers[name])
        return network(*inputs, **named)

    @contextmanager
    def backward_pass(self) -> Iterator[None]:
        """Raise RunError where a backward pass cannot be compiled, which torch may do at its first run only.

        Gradients are half made by then, and the method's hooks have been called: nothing goes on from there.
        """
        try:
            yield
        except Exception as error:
            if not self.compiled or not _is_of_compiler(error):
                raise
            raise RunError(
                f"the network's backward pass cannot be compiled (--compile): {_in_short(error)}",
                hint="Leave --compile out: the same command goes on from the last checkpoint.",
            ) from error

    def leave(self) -> None:
        """Let the networks be called as they are again: hooks and tests would have them compiled anew."""
        for network in self._networks:
            network._compiled_call_impl = None  # what `compile` has set, and has no function to unset

    def _give_up(self, error: Exception) -> None:
        self.compiled = False
        self.leave()
        self._failed(f"the network cannot be compiled, and is trained as it is (--compile): {_in_short(error)}")


def _in_short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN]  # torch adds a page of advice


def _is_of_compiler(error: Exception) -> bool:
    # By the module: the classes differ between versions of torch, and importing them costs seconds.
    names = {cls.__module__ for cls in type(error).__mro__}
    return any(name.startswith(("torch._dynamo", "torch._inductor", "torch._functorch")) for name in names)
