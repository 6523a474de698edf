"""The machine that a local sweep works on: its devices, and how many steps are trained at once."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cispbench.harness.machine.devices import device_name
from cispbench.harness.machine.environment import usable_cores
from cispbench.harness.machine.lazy import torch


@dataclass(frozen=True)
class Machine:
    """Where steps are executed: the devices, and how many steps at once."""

    devices: tuple[str, ...]
    workers: int

    @property
    def cores(self) -> int:
        """The cores each worker may use."""
        return max(1, usable_cores()[0] // self.workers)

    @property
    def threads(self) -> int:
        """The threads each worker computes with: its cores, or fewer where OMP_NUM_THREADS says so."""
        said = os.environ.get("OMP_NUM_THREADS", "")
        return min(self.cores, max(1, int(said))) if said.isdecimal() else self.cores

    def device(self, slot: int) -> str:
        """Return the device of a worker."""
        return self.devices[slot % len(self.devices)]


def choose_machine(device: str, workers: int | None) -> Machine:
    """Return the devices that ``auto`` or a name stands for, and a worker for each unless said. Raises UsageError."""
    chosen = device_name(device)
    every = chosen == "cuda"
    devices = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count())) if every else (chosen,)
    return Machine(devices, workers or len(devices))
