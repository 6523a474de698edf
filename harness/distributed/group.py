"""The group of processes that train a step together, and how they exchange values.

The first process (rank 0) alone decides, locks, publishes, records and prints; the others follow. A single process is
a group of one, in which every call returns at once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from cispbench.splits.errors import RunError, UsageError

Value = TypeVar("Value")

# How long a process waits for the others. Almost for ever: the first one may wait for a lock, or measure thresholds.
# If a process is lost, the launcher ends the others.
TIMEOUT = timedelta(days=30)
# How long a process waits for the others at the start, and after how long it says so.
START_TIMEOUT, NOTICE_SECONDS = timedelta(minutes=10), 15.0
# A process that finds another one lost sleeps so long, to be ended by the launcher. If it ended at once, the launcher
# could take its error for the cause.
LINGER_SECONDS = 20.0
CPU = torch.device("cpu")


class LostProcessError(RunError):
    """The training cannot go on, because another process of the group has ended."""


@dataclass(frozen=True)
class Group:
    """One of ``size`` processes, by its ``rank``."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process decides."""
        return self.rank == 0

    def decide(self, value: Value) -> Value:
        """Broadcast: return the first process's value in every process. Values must be picklable."""
        if self.size == 1:
            return value
        values = [value if self.first else None]
        dist.broadcast_object_list(values, src=0, device=CPU)
        return values[0]  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors, which have one shape; the argument may be overwritten."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first process run the block before the others, which then find what it has downloaded or indexed."""
        if not self.first:
            self.decide(None)
        yield
        if self.first:
            self.decide(None)


ALONE = Group()


def launched() -> bool:
    """Whether this process was started as one of several, by `launcher.start` or by torchrun."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def local_rank() -> int:
    """Return this process's rank on its machine, which is also the number of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Join the processes that this one was started with, for trainings on ``device``; yield their group.

    Raises UsageError if the launcher has not set how to find them, LostProcessError if one of them does not start in
    time, or ends too early.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _initialise("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    # The gradient of a slice of a concatenation has other strides than DDP's buckets. DDP copies it: no error.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not _means_lost_process(error):
            raise
        time.sleep(LINGER_SECONDS)
        raise LostProcessError("another process of this training has ended.", hint="See its error.") from error
    dist.destroy_process_group()  # Not after an error: it would wait for processes that have ended.


def _initialise(backend: str) -> None:
    """Wait for the other processes and initialise the group; print a notice if that takes long."""
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    text = f"process {rank} of {size} waits for the others at {place}"
    notice = threading.Timer(NOTICE_SECONDS, _print_notice, [text])
    notice.daemon = True
    notice.start()
    began = time.monotonic()
    try:
        store, number, count = next(rendezvous("env://", timeout=START_TIMEOUT))
        store.set_timeout(TIMEOUT)
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
    except ValueError as error:
        raise UsageError(
            f"RANK is set, as if this were one of several processes, but {error}.",
            hint="Start them by --devices or torchrun, or unset RANK and WORLD_SIZE.",
        ) from error
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or _means_lost_process(error)):
            raise
        waited, reason = time.monotonic() - began, str(error).partition("\n")[0].rstrip(".")
        raise LostProcessError(
            f"process {rank} of {size} has not met the others at {place} in {waited:.0f} s: {reason}.",
            hint="Start all of them at once, by --devices or torchrun, at a port (MASTER_PORT) that is free.",
        ) from error
    finally:
        notice.cancel()


def _print_notice(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _means_lost_process(error: RuntimeError) -> bool:
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError)):
        return True
    return any(word in str(error) for word in ("gloo", "NCCL"))
