"""The processes that train a step together: who this one is, and what all of them agree on.

The first process (rank 0) alone decides, locks, publishes, records and prints; the others follow. A process on its own
is a group of one, in which every call returns at once.
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

# The others wait for the first process as long as it waits for a lock or measures thresholds. Who ends them where a
# process is lost is the launcher, which watches all of them.
PATIENCE = timedelta(days=30)
# How long the processes of a group may be apart at their start, and after how long one says that it waits.
MEETING, TELL_SECONDS = timedelta(minutes=10), 15.0
# A process that finds another one lost waits to be ended, so that the lost one is seen to be the first.
LINGER_SECONDS = 20.0
CPU = torch.device("cpu")


class LostProcessError(RunError):
    """A training that cannot go on because another process of its group is gone."""


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
        """Return the first process's value, whatever the others' is."""
        if self.size == 1:
            return value
        values = [value if self.first else None]
        dist.broadcast_object_list(values, src=0, device=CPU)
        return values[0]  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """Return everybody's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of everybody's tensor, all of one shape; the argument may be overwritten."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first process go ahead, and the others after it: what it downloads or indexes, they find."""
        if not self.first:
            self.decide(None)
        yield
        if self.first:
            self.decide(None)


ALONE = Group()


def launched() -> bool:
    """Whether this process was started as one of several, by us or by torchrun."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def local_rank() -> int:
    """Return this process's number among those of its machine, which is also that of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Join the processes that this one was started with, for trainings on ``device``; yields their group.

    Raises UsageError if the launcher left out what is needed to find them, LostProcessError if one of them does not
    come or goes.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _meet("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    # What a slice of a concatenation gets for a gradient has other strides than DDP's buckets, which is no fault.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not _says_lost(error):
            raise
        time.sleep(LINGER_SECONDS)
        raise LostProcessError("another process of this training has ended.", hint="See its error.") from error
    dist.destroy_process_group()  # after an error it would wait for processes that are gone


def _meet(backend: str) -> None:
    """Wait for the others and make the group; say so once it takes long, and give up in the end."""
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    telling = threading.Timer(TELL_SECONDS, _tell, [f"process {rank} of {size} waits for the others at {place}"])
    telling.daemon = True
    telling.start()
    began = time.monotonic()
    try:
        store, number, count = next(rendezvous("env://", timeout=MEETING))
        store.set_timeout(PATIENCE)
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
    except ValueError as error:
        raise UsageError(
            f"RANK is set, as if this were one of several processes, but {error}.",
            hint="Start them by --devices or torchrun, or unset RANK and WORLD_SIZE.",
        ) from error
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or _says_lost(error)):
            raise
        waited, reason = time.monotonic() - began, str(error).partition("\n")[0].rstrip(".")
        raise LostProcessError(
            f"process {rank} of {size} has not met the others at {place} in {waited:.0f} s: {reason}.",
            hint="Start all of them at once, by --devices or torchrun, at a port (MASTER_PORT) that is free.",
        ) from error
    finally:
        telling.cancel()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _says_lost(error: RuntimeError) -> bool:
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError)):
        return True
    return any(word in str(error) for word in ("gloo", "NCCL"))
