"""What a method costs: time of training, peak memory and parameters, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from cispbench.reports.plots.page import FULL, Page, new_page
from cispbench.reports.plots.subject import BLUE, SKY, Subject
from cispbench.reports.plots.wording import shorten
from cispbench.reports.tables.cells import Cell, Spread, spread

_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
_GIB = 1024.0**3
_DARK, _LIGHT, _HOST = BLUE, SKY, "#999999"


@dataclass(frozen=True)
class RunCosts:
    """The cost of a run, over seeds: seconds of training step 0 and all steps, peak bytes, parameters at the end.

    ``on_device``: whether ``memory`` is the peak of an accelerator, not of the host.
    """

    first: Spread
    total: Spread
    memory: Spread
    on_device: bool
    parameters: int


def costs(cell: Cell) -> RunCosts:
    """Return the cost of the runs of a cell; a step that several runs share counts whole in each of them."""
    by_run = [{step.step: step.cost for step in run.steps} for run in cell.runs]
    on_device = all(cost.peak_device_bytes is not None for steps in by_run for cost in steps.values())
    place = "peak_device_bytes" if on_device else "peak_host_bytes"
    return RunCosts(
        first=spread([steps[0].train_seconds if 0 in steps else 0.0 for steps in by_run]),
        total=spread([sum(cost.train_seconds for cost in steps.values()) for steps in by_run]),
        memory=spread([max(float(getattr(cost, place)) for cost in steps.values()) for steps in by_run]),
        on_device=on_device,
        parameters=cell.runs[0].facts.model.parameters,
    )


def costly(cell: Cell) -> bool:
    """Whether the cost of a cell is known: not where masks alone were scored, or a step was trained elsewhere."""
    return cell.key.origin != "predictions" and not cell.key.imported and all(run.complete for run in cell.runs)


def draw_cost(subject: Subject) -> Page:
    """Draw time of training, peak memory and parameters of every method, from zero."""
    kept = [(cell, label) for cell, label in zip(subject.cells, subject.labels, strict=True) if costly(cell)]
    found = [costs(cell) for cell, _ in kept]
    several = any(len(cell.runs) > 1 for cell, _ in kept)
    mixed = len({cost.on_device for cost in found}) > 1
    legend = [Patch(color=_DARK, label="step 0"), Patch(color=_LIGHT, label="later steps")]
    if mixed:
        legend.append(Patch(color=_HOST, label="memory of the host, not of a device"))
    words = subject.words(
        "Cost of a run",
        "Time of training, testing left out; a step shared with other runs counts whole in each."
        + (" Mean over seeds; whiskers: one standard deviation." if several else ""),
        _machines(kept),
        scored=False,
    )
    page = new_page(FULL, 0.5 + 0.2 * len(kept), words, legend, gap=0.05)
    time, memory, parameters = page.figure.subplots(1, 3, sharey=True)
    labels = [shorten(label, 1.6, 6.5) for _, label in kept]
    time.set_yticks(range(len(labels)), labels)
    time.invert_yaxis()
    time.set_ylim(len(labels) - 0.4, -0.6)
    longest = max(cost.total.mean for cost in found)
    unit, name = next((entry for entry in _UNITS if longest >= entry[0]), _UNITS[-1])
    _bars(time, f"training ({name})", [cost.total for cost in found], unit, [_LIGHT] * len(found))
    time.barh(range(len(found)), [cost.first.mean / unit for cost in found], height=0.6, color=_DARK)
    host = not any(cost.on_device for cost in found)
    colours = [_DARK if cost.on_device or host else _HOST for cost in found]
    name = f"peak memory{' of the host' if host else ''} (GiB)"
    _bars(memory, name, [cost.memory for cost in found], _GIB, colours)
    unit, name = (1e6, "millions") if max(cost.parameters for cost in found) >= 1e6 else (1e3, "thousands")
    values = [spread([float(cost.parameters)]) for cost in found]
    _bars(parameters, f"parameters ({name})", values, unit, [_DARK] * len(found))
    for axes in (time, memory, parameters):
        axes.tick_params(axis="y", length=0)
    return page


def _bars(axes: Axes, title: str, values: Sequence[Spread], unit: float, colours: Sequence[str]) -> None:
    """Draw a bar for each value, in so many units, with the value behind the bar and its whisker."""
    ends = []
    for row, (value, colour) in enumerate(zip(values, colours, strict=True)):
        mean, std = value.mean / unit, 0.0 if math.isnan(value.std) else value.std / unit
        axes.barh(row, mean, height=0.6, color=colour)
        if std:
            axes.errorbar(mean, row, xerr=std, color="black", linewidth=0.8, capsize=1.5, capthick=0.8)
        text = f"{mean:.0f}" if mean >= 100 else f"{mean:.3g}"
        axes.annotate(text, (mean + std, row), (3, 0), textcoords="offset points", fontsize=6, va="center")
        ends.append(mean + std)
    axes.set_xlabel(title)
    axes.set_xlim(0, max(ends) * 1.22 or 1.0)


def _machines(kept: Sequence[tuple[Cell, str]]) -> str:
    environments = [run.facts.environment for cell, _ in kept for run in cell.runs]
    names = {str(each.get("device_name") or each.get("cpu") or "a machine unknown") for each in environments}
    if len(names) > 1:
        return f"Measured on {len(names)} kinds of machines: times do not compare between them."
    return f"Measured on {names.pop()}." if names else ""
