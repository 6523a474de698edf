"""The plan of a sweep as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from cispbench.harness.machine.progress import describe_seconds
from cispbench.harness.sweep.graph import Amount, Graph, Node
from cispbench.harness.sweep.planning import SweepPlan

UNMEASURED = "unknown (no record of such a step on this machine)"


def plan_text(plan: SweepPlan, graph: Graph) -> str:
    """Return the graph, a step a line, and below it what it costs and what sharing saves."""
    rows = [_row(node) for node in graph.nodes]
    parts = [_table(rows), "", _table(_amounts(graph)), "", *_states(plan, graph), *_estimates(graph), *_notes(plan)]
    return "\n".join(parts)


def plan_json(plan: SweepPlan, graph: Graph) -> str:
    """Return the same for scripts: ``steps``, ``totals``, ``estimate`` (null: unknown), ``left_out`` and ``notes``."""
    seconds, unmeasured = graph.seconds_left()
    size, unsized = graph.bytes_left()
    return json.dumps(
        {
            "runs": len(plan.runs),
            "steps": [_step(node) for node in graph.nodes],
            "states": graph.states(),
            "totals": {
                "without_sharing": asdict(graph.unshared()),
                "with_sharing": asdict(graph.shared()),
                "left": asdict(graph.left()),
            },
            "estimate": {
                "seconds": None if unmeasured else seconds, "steps_without_measured_seconds": unmeasured,
                "bytes": None if unsized else size, "steps_without_measured_bytes": unsized,
            },
            "left_out": [asdict(entry) for entry in plan.left_out],
            "without_data": plan.without_data,
            "notes": plan.notes,
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


def _amounts(graph: Graph) -> list[dict[str, Any]]:
    alone, shared = graph.unshared(), graph.shared()
    saved = Amount(
        alone.steps - shared.steps, alone.images - shared.images, alone.iterations - shared.iterations
    )  # fmt: skip
    percent = 100 * saved.iterations / alone.iterations if alone.iterations else 0.0
    lines = {
        "every run trains all its steps": alone, "each step trained once": shared,
        f"saved by sharing ({percent:.0f} % of the iterations)": saved, "left to train": graph.left(),
    }  # fmt: skip
    return [{"in all": title, **asdict(amount)} for title, amount in lines.items()]


def _states(plan: SweepPlan, graph: Graph) -> list[str]:
    counts = ", ".join(f"{count} {state}" for state, count in graph.states().items())
    return [f"{len(plan.runs)} runs, {len(graph.nodes)} steps: {counts}."]


def _estimates(graph: Graph) -> list[str]:
    seconds, unmeasured = graph.seconds_left()
    size, unsized = graph.bytes_left()
    left = graph.left().steps
    if not left:
        return ["Nothing is left to train."]
    time = _known(describe_seconds(seconds), left, unmeasured)
    disk = _known(f"{size / 1e9:.2f} GB", left, unsized)
    return [f"Training time left, on one device: {time}.", f"Weights to come: {disk}."]


def _known(value: str, steps: int, without: int) -> str:
    if without == steps:
        return UNMEASURED
    return f"{value} and {without} of {steps} steps {UNMEASURED}" if without else value


def _notes(plan: SweepPlan) -> list[str]:
    lines = [f"Left out: {entry.method} on {entry.setting}: {entry.reason}" for entry in plan.left_out]
    lines += [f"Note: {note}" for note in plan.notes]
    if plan.without_data:
        lines.append(
            f"Note: no data found ({', '.join(plan.without_data)}): counts are the published ones, and nothing can be "
            "trained. Give --data-root, or use --profile quick for the built-in scenes."
        )
    return lines


def _table(rows: list[dict[str, Any]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github")
