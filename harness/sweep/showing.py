"""The plan of a sweep as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cispbench.harness.machine.progress import describe_seconds, number_of
from cispbench.harness.sweep.graph import Graph, Node, TrainingCost
from cispbench.harness.sweep.planning import SweepPlan

# Writes a table from its headers, its rows and the names of the columns that end flush.
TableWriter = Callable[[Sequence[str], Sequence[Sequence[str]], Collection[str]], str]

UNMEASURED = "unknown (no record of such a step on this machine)"


def plan_text(plan: SweepPlan, graph: Graph, table: TableWriter, price: Sequence[str] = ()) -> str:
    """Return a table of the steps, what they cost, and what sharing saves; ``price``: lines that come last."""
    rows = [_row(node) for node in graph.nodes]
    parts = [
        _table(rows, table),
        "",
        _table(_costs(graph), table),
        "",
        _counts(plan, graph),
        *_estimates(graph),
        *_notes(plan),
        *price,
    ]
    return "\n".join(parts)


def plan_json(plan: SweepPlan, graph: Graph, price: Mapping[str, Any] | None = None) -> str:
    """Return the same for scripts: ``steps``, ``totals``, ``estimate`` (null: unknown), ``left_out`` and ``notes``.

    ``price`` is added as it is.
    """
    seconds, without_seconds = graph.remaining_seconds()
    size, without_size = graph.remaining_bytes()
    return json.dumps(
        {
            "runs": len(plan.runs),
            "steps": [_step(node) for node in graph.nodes],
            "states": graph.states(),
            "totals": {
                "without_sharing": asdict(graph.unshared()),
                "with_sharing": asdict(graph.shared()),
                "left": asdict(graph.remaining()),
            },
            "estimate": {
                "seconds": None if without_seconds else seconds, "steps_without_measured_seconds": without_seconds,
                "bytes": None if without_size else size, "steps_without_measured_bytes": without_size,
            },
            "left_out": [asdict(entry) for entry in plan.left_out],
            "without_data": plan.without_data,
            "notes": plan.notes,
            **({} if price is None else {"price": price}),
        }
    )  # fmt: skip


def _row(node: Node) -> dict[str, Any]:
    state = f"{node.state}: {node.reason}" if node.reason and node.state != "unknown" else node.state
    after = node.previous[:10] if node.previous else "-"
    return {
        "step": node.name, "key": node.key[:10], "after": after, "images": node.images, "iterations": node.iterations,
        "runs": node.shared_by, "state": state,
    }  # fmt: skip


def _step(node: Node) -> dict[str, Any]:
    return {
        "key": node.key, "previous_key": node.previous, "step": node.step, "methods": node.methods,
        "settings": node.settings, "seed": node.needs[0].run.seed, "runs": node.shared_by, "images": node.images,
        "iterations": node.iterations, "state": node.state, "reason": node.reason, "seconds": node.seconds,
        "bytes": node.bytes,
    }  # fmt: skip


def _costs(graph: Graph) -> list[dict[str, Any]]:
    alone, shared = graph.unshared(), graph.shared()
    saved = TrainingCost(
        alone.steps - shared.steps, alone.images - shared.images, alone.iterations - shared.iterations
    )  # fmt: skip
    percent = 100 * saved.iterations / alone.iterations if alone.iterations else 0.0
    lines = {
        "every run trains all its steps": alone, "each step trained once": shared,
        f"saved by sharing ({percent:.0f} % of the iterations)": saved, "still to train": graph.remaining(),
    }  # fmt: skip
    return [{"in all": title, **asdict(cost)} for title, cost in lines.items()]


def _counts(plan: SweepPlan, graph: Graph) -> str:
    states = ", ".join(f"{count} {state}" for state, count in graph.states().items())
    return f"{number_of(len(plan.runs), 'run')}, {number_of(len(graph.nodes), 'step')}: {states}."


def _estimates(graph: Graph) -> list[str]:
    steps = graph.remaining().steps
    if not steps:
        return ["No step has to be trained."]
    seconds, without_seconds = graph.remaining_seconds()
    size, without_size = graph.remaining_bytes()
    return [
        f"Training time on {_devices(graph)}: {_estimate(describe_seconds(seconds), steps, without_seconds)}.",
        f"Disk space for new weights: {_estimate(f'{size / 1e9:.2f} GB', steps, without_size)}.",
    ]


def _devices(graph: Graph) -> str:
    number = graph.nodes[0].needs[0].run.devices
    return "one device" if number == 1 else number_of(number, "device")


def _estimate(value: str, steps: int, without: int) -> str:
    if without == steps:
        return UNMEASURED
    return f"{value}, and {without} of {number_of(steps, 'step')} {UNMEASURED}" if without else value


def _notes(plan: SweepPlan) -> list[str]:
    lines = [f"Left out: {entry.method} on {entry.setting}: {entry.reason}" for entry in plan.left_out]
    lines += [f"Note: {note}" for note in plan.notes]
    if plan.without_data:
        lines.append(
            f"Note: no data found ({', '.join(plan.without_data)}). The numbers of images are the published ones, and "
            "nothing can be trained. Give --data-root, or use --profile quick for the built-in scenes."
        )
    return lines


def _table(rows: list[dict[str, Any]], table: TableWriter) -> str:
    names = list(rows[0])
    right = [name for name in names if all(isinstance(row[name], int) for row in rows)]
    return table(names, [list(map(str, row.values())) for row in rows], right)
