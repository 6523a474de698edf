"""The workers of a local sweep: how many steps are trained at once, and what device and cores each one gets."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cispbench.harness.machine.devices import device_name
from cispbench.harness.machine.environment import usable_cores
from cispbench.harness.machine.lazy import torch


@dataclass(frozen=True)
class WorkerSlots:
    """Places for ``workers`` steps at once, numbered from 0, on ``devices``."""

    devices: tuple[str, ...]
    workers: int

    @property
    def cores(self) -> int:
        """The cores each worker may use."""
        return max(1, usable_cores()[0] // self.workers)

    @property
    def threads(self) -> int:
        """The threads each worker computes with: its cores, or fewer if OMP_NUM_THREADS says so."""
        limit = os.environ.get("OMP_NUM_THREADS", "")
        return min(self.cores, max(1, int(limit))) if limit.isdecimal() else self.cores

    def device(self, slot: int) -> str:
        """Return the device of a slot; more workers than devices share them in turn."""
        return self.devices[slot % len(self.devices)]


def choose_slots(device: str, workers: int | None) -> WorkerSlots:
    """Return the slots for a device ("auto", "cuda": all GPUs), by default one a device. Raises UsageError."""
    chosen = device_name(device)
    every = chosen == "cuda"
    devices = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count())) if every else (chosen,)
    return WorkerSlots(devices, workers or len(devices))
