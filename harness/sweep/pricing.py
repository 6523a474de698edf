"""The price of a plan: what its steps to train and to test cost on named devices. Counting imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cispbench.harness.cost.devices import GIB, Device
from cispbench.harness.cost.flops import Work
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.models.catalogue import trains_batch_norm
from cispbench.harness.runs.step_cost import PhaseCost, StepCosts, Training, smaller_shares
from cispbench.harness.sweep.graph import Graph, Node
from cispbench.splits.errors import RunError


@dataclass
class PricedRow:
    """What some steps cost: their ``work``, and the phase that needs the most memory, with the step it belongs to."""

    name: str
    steps: int = 0
    work: list[Work] = field(default_factory=list)
    largest: tuple[PhaseCost, Training] | None = None

    @property
    def flops(self) -> float:
        """All operations."""
        return sum(work.flops.total for work in self.work)

    @property
    def bytes(self) -> float:
        """The memory of a device; 0 if nothing has to be trained."""
        return 0.0 if self.largest is None else self.largest[0].bytes

    def seconds(self, device: Device) -> float:
        """Return how long a device takes; of several ones that share each step, the sum over all."""
        return sum(device.seconds(work) for work in self.work)


@dataclass(frozen=True)
class Price:
    """The rows by method or by step; ``warnings``: what was not counted, or exceeds a device's memory."""

    devices: tuple[Device, ...]
    rows: tuple[PricedRow, ...]
    precisions: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def largest(self) -> PricedRow:
        """The row that needs the most memory."""
        return max(self.rows, key=lambda row: row.bytes, default=PricedRow("nothing"))


def price_graph(
    graph: Graph, devices: Sequence[Device], view: ProgressView, *, by_step: bool, divisible: bool
) -> Price:
    """Return what is left of a graph costs on the devices; steps that are there cost nothing.

    ``by_step``: a row for each step, not for each method. ``divisible``: several devices may share a step.
    """
    costs, rows, failed = StepCosts(), dict[str, PricedRow](), dict[str, None]()
    nodes = graph.to_do()
    for done, node in enumerate(nodes, start=1):
        name = _row_name(node, by_step)
        row = rows.setdefault(name, PricedRow(name))
        try:
            _add(row, node, costs)
        except RunError as error:
            failed[f"Not counted: {error.message}"] = None
        view.counting("counting the cost of steps", done, len(nodes))
    found = tuple(rows.values())
    precisions = tuple(dict.fromkeys(work.precision for row in found for work in row.work))
    price = Price(tuple(devices), found, precisions, tuple(failed))
    too_large = (_too_large(price.largest, device, divisible) for device in devices)
    return replace(price, warnings=(*failed, *filter(None, too_large)))


def _row_name(node: Node, by_step: bool) -> str:
    if by_step:
        return f"step {node.step}"
    return node.methods[0] if len(node.methods) == 1 else f"step {node.step} of {len(node.methods)} methods"


def _add(row: PricedRow, node: Node, costs: StepCosts) -> None:
    training = Training(node.needs[0].run, node.step)
    # Runs that share a step are tested on different classes, and methods predict in different ways.
    tests = {need.run.evaluation_key: need.run for need in node.needs}
    work = [costs.tests(run, node.step) for run in tests.values()]
    phases = costs.training(training) if node.to_train else []
    row.steps += 1
    row.work += [*work, *(phase.work for phase in phases)]
    largest = max(phases, key=lambda phase: phase.bytes, default=None)
    if largest is not None and largest.bytes > row.bytes:
        row.largest = largest, training


def _too_large(row: PricedRow, device: Device, divisible: bool) -> str | None:
    """Say that the row that needs the most memory exceeds a device's, and what to do; None if it does not."""
    if row.largest is None or row.bytes <= device.memory:
        return None
    cost, training = row.largest
    plan = training.plan
    micro_batch, devices = smaller_shares(plan, cost, device.memory)
    ways = []
    if micro_batch is not None:
        norms = trains_batch_norm(plan.recipe.model, plan.recipe.fixed_norms(plan.recipe.phase(training.step)))
        result = ", another result: batch norms see parts" if norms else ""
        ways.append(f"--micro-batch {micro_batch} (about {gib(cost.memory.bytes(micro_batch))} GiB{result})")
    if devices is not None and divisible:
        ways.append(f"--devices {devices} (about {gib(cost.memory.bytes(-(-cost.batch // devices)))} GiB each)")
    action = f"use {' or '.join(ways)}" if ways else "use a smaller crop (--set data.crop=...) or another device"
    return (
        f"{row.name} needs about {gib(row.bytes)} GiB for {cost.held} images at once, and {device.name} has "
        f"{device.memory / GIB:.0f} GiB: {action}."
    )


def gib(number: float) -> str:
    """Write bytes in GiB with two digits."""
    value = number / GIB
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
