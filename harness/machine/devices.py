"""Which device a name stands for, and what its precision needs.

``sweep --plan`` must know the device and must not spend the seconds that importing torch takes. So on Linux torch is
asked only where the driver of an accelerator is there; on macOS always, as no files tell. The GPU of a Mac (MPS) is not
used.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cispbench.harness.machine.lazy import torch
from cispbench.splits.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import device as Device  # noqa: N812
    from torch import nn

Network = TypeVar("Network", bound="nn.Module")

# Of CUDA (nvhost-gpu and nvmap: Jetson boards, dxg: Linux within Windows) and of ROCm (kfd).
DRIVERS = tuple(Path("/dev") / name for name in ("nvidiactl", "nvidia0", "nvhost-gpu", "nvmap", "dxg", "kfd"))

MOST_LOADERS = 8  # more do not make a GPU wait less


def device_name(name: str, rank: int | None = None) -> str:
    """Return what ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` stands for, as torch names it. Raises UsageError.

    ``rank``: the number of a process that is one of several, each with a device of its own.
    """
    if name == "auto":
        name = "cuda" if _may_have_accelerator() and torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and (kind == "cpu" or not number.isdigit())):
        raise UsageError(f"unknown device {name!r}.", hint=nearest(name, ["auto", "cpu", "cuda", "cuda:0"]))
    if rank is not None and number:
        raise UsageError(f"{name!r} is a single device, and this process is one of several.", hint="Use --device cuda.")
    if kind == "cuda" and int(number or rank or 0) >= torch.cuda.device_count():
        wanted = name if rank is None else f"cuda:{rank}"
        raise UsageError(f"there is no device {wanted!r}: torch sees {torch.cuda.device_count()} of its kind.",
                         hint="Use --device cpu, or a number below that.")  # fmt: skip
    return name if rank is None or kind == "cpu" else f"cuda:{rank}"


def choose_device(name: str, rank: int | None = None) -> Device:
    """Return the device that a name stands for, see ``device_name``. Raises UsageError."""
    return torch.device(device_name(name, rank))


def default_loaders(kind: str, cores: int) -> int:
    """Return how many processes load images for a device of a kind ("cpu", "cuda"), if nobody names a number.

    None for the CPU: they would take the cores that the training computes on.
    """
    return 0 if kind == "cpu" else min(MOST_LOADERS, cores)


def to_device(model: Network, device: Device) -> Network:
    """Move a network to a device, with the channels of a pixel next to each other in memory (channels_last).

    Convolutions are fastest so, on CPUs and GPUs; images come in the same order (``data/loader.py``).
    """
    model.to(device).to(memory_format=torch.channels_last)
    return model


def autocast(device: Device, precision: str) -> torch.autocast:
    """Return the autocast context of a precision: fp32 (a no-op), bf16 or fp16."""
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, types.get(precision, torch.bfloat16), enabled=precision in types)


def _may_have_accelerator() -> bool:
    loaded = sys.modules.get("torch") is not None  # then asking costs nothing
    return loaded or sys.platform != "linux" or any(path.exists() for path in DRIVERS)
