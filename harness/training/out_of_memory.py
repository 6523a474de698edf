"""Explain an error of too little memory: what needed the memory, and what a person can set to need less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cispbench.splits.errors import RunError


@contextmanager
def explaining_memory(what: str, device: torch.device, hint: str) -> Iterator[None]:
    """Raise a RunError for an out-of-memory error: ``what`` needed the memory, and ``hint`` says what to set."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        message = f"the memory of {_described(device)} does not suffice for {what}{_requested(error)}."
        raise RunError(message, hint=hint) from error


def _described(device: torch.device) -> str:
    """Return ``cuda:0 (NVIDIA ...)``, or ``cpu``."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator and CUDA's contexts and libraries raise a plain RuntimeError: only its words tell.
    return any(words in str(error) for words in ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED"))


def _requested(error: BaseException) -> str:
    """Return how much memory was requested last, where the error says so."""
    on_cuda = re.search(r"Tried to allocate ([\d.]+ \wiB)", str(error))
    if on_cuda:
        return f": it asked for {on_cuda[1]} more"
    on_cpu = re.search(r"tried to allocate (\d+) bytes", str(error))
    return f": it asked for {int(on_cpu[1]) / 1024**3:.2f} GiB more" if on_cpu else ""
