"""What a sweep prints when it has ended: its finished runs with their scores, and the steps that failed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from cispbench.harness.commands.options import Printing
from cispbench.harness.machine.progress import number_of
from cispbench.harness.sweep.graph import Graph, Node
from cispbench.harness.sweep.outcome import SweepOutcome
from cispbench.reports.tables.numbers import number_text
from cispbench.reports.tables.runs import SCORES, Group, run_json, score_record, scores_json
from cispbench.reports.tables.terminal import table_text
from cispbench.results.store import Store
from cispbench.splits.errors import RunError


def step_scores(records: Store, protocol: str) -> Callable[[Node], str]:
    """Return what says how the first run of a step has scored after it."""

    def say(node: Node) -> str:
        record = records.find(node.key, node.needs[0].run.run_key)
        if record is None:
            return ""
        scores = score_record(record, protocol)
        return "  ".join(f"{name} {number_text(getattr(scores, name), 1)}" for name in ("old", "new", "all"))

    return say


def print_outcome(graph: Graph, records: Store, outcome: SweepOutcome, printing: Printing) -> None:
    """Print how a sweep has ended and the scores of its runs. Raises RunError if a step failed."""
    rows = _run_rows(graph, records, printing.protocol)
    if printing.as_json:
        failed = [
            {"key": entry.node.key, "step": entry.node.name, "reason": entry.reason,
             "log": None if entry.log is None else str(entry.log)}
            for entry in outcome.failures
        ]  # fmt: skip
        click.echo(json.dumps({"finished": outcome.finished, "failed": failed, "runs": rows}))
    else:
        click.echo(f"{number_of(outcome.finished, 'step')} finished now.\n\n{runs_table(rows, sys.stdout.isatty())}")
    if outcome.failures:
        reasons = [
            f"{entry.node.name}: {entry.reason}" + (f" Log: {entry.log}" if entry.log else "")
            for entry in outcome.failures
        ]
        raise RunError(
            "\n  ".join([f"{number_of(len(outcome.failures), 'step')} failed or not tried:", *reasons]) + "\n",
            hint="The same command tries them again, and leaves what is finished as it is.",
        )


def _run_rows(graph: Graph, records: Store, protocol: str) -> list[dict[str, Any]]:
    """Return the finished runs of the sweep, in its order, with their scores."""
    last = {}
    for node in graph.nodes:
        for need in node.needs:
            if need.planned is need.run.steps[-1]:
                last[need.run.run_key] = node.key
    known = {(record.key, record.run_key): record for record in records.records()}
    found = [known[key, run_key] for run_key, key in last.items() if (key, run_key) in known]
    return [{**run_json(record), **scores_json(score_record(record, protocol))} for record in found]


def runs_table(rows: list[dict[str, Any]], terminal: bool = False) -> str:
    """Return the table of finished runs, Markdown or for a terminal, and below it each warning once."""

    def number(value: float | None) -> str:
        return "-" if value is None else number_text(value, 2)

    names = ("method", "setting", "model", "profile", "seed")
    cells = [
        [*(str(row[name]) for name in names), *(number(row[name]) for name in ("old", "new", "all"))] for row in rows
    ]
    if not rows:
        return "No run is finished."
    groups = [Group(row["data"], row["profile"], row["dataset"]) for row in rows]
    warnings = dict.fromkeys(warning for group in groups for warning in group.warnings)
    table = table_text([*names, *SCORES], cells, SCORES, terminal=terminal)
    return "\n\n".join([table, *warnings])
