"""The devices that a plan is priced on: those of ``devices.yaml``, and this machine's processor, which is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cispbench.harness.cost.flops import Work
from cispbench.harness.machine.environment import describe_environment
from cispbench.splits.errors import CispbenchError, UsageError, nearest
from cispbench.splits.ranges import Range
from cispbench.splits.strict_fields import read_fields
from cispbench.splits.strict_yaml import load_yaml

TABLE = Path(__file__).with_name("devices.yaml")
THIS_CPU = "cpu"
TERA, GIB = 1e12, 2**30

Speed = Annotated[float, Range(above=0, most=1e6)]
Share = Annotated[float, Range(above=0, most=1)]


@dataclass(frozen=True)
class Peak:
    """TFLOP/s by number format."""

    fp32: Speed
    tf32: Speed
    bf16: Speed
    fp16: Speed


@dataclass(frozen=True)
class PrecisionShares:
    """The share of the peak that a training reaches, by the recipe's precision."""

    fp32: Share
    bf16: Share
    fp16: Share


@dataclass(frozen=True)
class Shares:
    """The shares by kind of operation, see ``Flops``."""

    products: PrecisionShares
    convolutions: PrecisionShares


@dataclass(frozen=True)
class DeviceFacts:
    """A row of ``devices.yaml``; the comment at the file's head says what the fields mean."""

    title: str
    memory: Annotated[float, Range(above=0, most=1e6)]
    peak: Peak
    share: Shares
    source: str


@dataclass(frozen=True)
class NamedDevice:
    """A device of the table."""

    name: str
    facts: DeviceFacts

    @property
    def memory(self) -> float:
        """The memory in bytes."""
        return self.facts.memory * GIB

    def seconds(self, work: Work) -> float:
        """Return how long the work is assumed to take."""
        products, convolutions = self.speeds(work.precision)
        return work.flops.products / products + work.flops.convolutions / convolutions

    def speeds(self, precision: str) -> tuple[float, float]:
        """Return the assumed FLOP/s in products of matrices and in convolutions."""
        facts, shares = self.facts, self.facts.share
        # cuDNN takes TF32 for convolutions of float32, unless it is forbidden; products of matrices must ask for it.
        convolving = "tf32" if precision == "fp32" else precision
        return (
            getattr(facts.peak, precision) * getattr(shares.products, precision) * TERA,
            getattr(facts.peak, convolving) * getattr(shares.convolutions, precision) * TERA,
        )

    def describe(self, precisions: Sequence[str]) -> str:
        """Return what is assumed of it, for the precisions of a plan."""
        shares = self.facts.share
        parts = [
            f"{precision} {getattr(self.facts.peak, precision):g} TFLOP/s, of which products of matrices reach "
            f"{100 * getattr(shares.products, precision):.0f} % and convolutions "
            + (f"{100 * shares.convolutions.fp32:.0f} % of {self.facts.peak.tf32:g} (tf32)" if precision == "fp32"
               else f"{100 * getattr(shares.convolutions, precision):.0f} %")
            for precision in precisions
        ]  # fmt: skip
        return f"{self.name} is an {self.facts.title}: {'; '.join(parts)} (assumed)"


@dataclass(frozen=True)
class ThisProcessor:
    """This machine's processor: a short pass of each network tells how fast it is."""

    name: str = THIS_CPU

    @property
    def memory(self) -> float:
        """The memory in bytes: that of the machine, or of the process's cgroup."""
        return float(str(describe_environment(self.name)["memory_bytes"]))

    def seconds(self, work: Work) -> float:
        """Return how long the work takes here. The first call for a network and a precision takes seconds."""
        import torch

        from cispbench.harness.cost.measured import network_speed

        return work.flops.total / network_speed(work.model, work.crop, work.precision, torch.device(THIS_CPU))

    def describe(self, precisions: Sequence[str]) -> str:
        """Return what it is."""
        found = describe_environment(self.name)
        return f"cpu is this machine ({found['cpu']}, {found['physical_cores']} cores), measured now on small images"


Device = NamedDevice | ThisProcessor


def device_table(path: Path = TABLE) -> dict[str, NamedDevice]:
    """Read the table by name. Raises CispbenchError for fields that are unknown, missing or out of range."""
    rows = load_yaml(path)
    return {
        name: NamedDevice(name, read_fields(DeviceFacts, row, f"the device {name!r} in {path}", CispbenchError))
        for name, row in rows.items()
    }


def named_devices(text: str) -> tuple[Device, ...]:
    """Return the devices of a list such as "h100,cpu", each once. Raises UsageError with the nearest name."""
    table: dict[str, Device] = {**device_table(), THIS_CPU: ThisProcessor()}
    names = dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip())
    for name in names:
        if name not in table:
            raise UsageError(
                f"--on {text}: there is no device {name!r} to price a plan for.", hint=nearest(name, table)
            )
    if not names:
        raise UsageError(f"--on {text!r} names no device.", hint=f"Known: {', '.join(table)}.")
    return tuple(table[name] for name in names)
