"""The checkpoint of a step that is being trained: written by the first process, taken back by all of them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from cispbench.harness.distributed.group import Group
from cispbench.harness.machine.seeds import derive_seed, random_states, restore_random_states, seed_everything
from cispbench.results.atomic import write_atomic

# What reading a damaged checkpoint, or putting a foreign one to use, was seen to raise.
CHECKPOINT_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    pickle.PickleError,
)


def write_checkpoint(path: Path, state: dict[str, Any], device: torch.device, group: Group) -> None:
    """Write a state with every process's random states; called by all, written by the first."""
    own, *others = group.gather(random_states(device))
    if group.first:
        buffer = io.BytesIO()
        torch.save({**state, "random": own, "random_of_others": others}, buffer)
        write_atomic(path, buffer.getvalue())


def read_checkpoint(path: Path, group: Group) -> dict[str, Any] | str | None:
    """Return what the first process reads: the state, None where there is no checkpoint, or what is wrong with it."""
    found: dict[str, Any] | str | None = None
    if group.first and path.exists():
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except CHECKPOINT_ERRORS as error:
            found = first_line(error)
    return group.decide(found)


def restore_chance(state: dict[str, Any], device: torch.device, group: Group, seed: int) -> bool:
    """Take this process's random states back, and return whether what is random goes on as it would have.

    A process that the checkpoint does not know begins a stream of its own, and so does another kind of device.
    """
    states = [state["random"], *state.get("random_of_others", [])]
    if group.rank < len(states) and (states[group.rank]["cuda"] is None) == (device.type != "cuda"):
        restore_random_states(states[group.rank], device)
        return len(states) == group.size
    seed_everything(derive_seed(seed, "process", group.rank, state["iteration"]))
    return False


def first_line(error: Exception) -> str:
    """Return what an error says, in a line."""
    return str(error).partition("\n")[0] or type(error).__name__
