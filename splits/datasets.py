"""The data sets with their listed tasks, scenarios and published class orders, read from YAML once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cispbench.splits.errors import CispbenchError, SettingError, nearest
from cispbench.splits.strict_yaml import load_yaml

SCENARIOS = ("overlapped", "disjoint", "partitioned")
NATURAL_ORDER = "a"
_TASK = re.compile(r"([0-9]+)-([0-9]+)")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Dataset:
    """A data set: ``classes`` counts the foreground; ``tasks`` maps a listed task to its scenarios."""

    name: str
    title: str
    classes: int
    tasks: dict[str, tuple[str, ...]]
    paper_table: tuple[str, ...]

    def misfit(self, task: str) -> str | None:
        """Return why the task ``X-Y`` does not fit this data set, or None if it does."""
        first, rest = task_numbers(task)
        if first >= self.classes:
            return f"{self.name} has {self.classes} classes, so step 0 cannot learn {first} and leave some for later"
        left = self.classes - first
        if left % rest:
            return f"{self.name} has {self.classes} classes, and the {left} left after step 0 do not divide by {rest}"
        return None


def task_numbers(task: str) -> tuple[int, int]:
    """Return X and Y of the task ``X-Y``; both at least 1, without leading zeros. Raises SettingError."""
    match = _TASK.fullmatch(task)
    if match is None:
        raise SettingError(f"{task!r} is no task.", hint="Write X-Y, two whole numbers, for example 15-1.")
    if any(number.startswith("0") for number in match.groups()):
        raise SettingError(
            f"the task {task!r} has a step without classes or a leading zero.",
            hint="Write X-Y with X and Y of at least 1, for example 15-1.",
        )
    return int(match[1]), int(match[2])


@cache
def datasets() -> dict[str, Dataset]:
    """Return the data sets of ``tasks.yaml`` by name. Raises CispbenchError if the file breaks its own rules."""
    path = _HERE / "tasks.yaml"
    return {name: _read_dataset(name, entry, path) for name, entry in load_yaml(path).items()}


def dataset(name: str) -> Dataset:
    """Return one data set by name. Raises SettingError with the nearest name."""
    known = datasets()
    if name not in known:
        raise SettingError(f"unknown data set {name!r}.", hint=nearest(name, known))
    return known[name]


def _read_dataset(name: str, entry: dict[str, Any], path: Path) -> Dataset:
    if set(entry) != {"title", "classes", "tasks", "paper_table"}:
        raise CispbenchError(f"{path}: {name} must have title, classes, tasks and paper_table, not {sorted(entry)}.")
    tasks = {task: tuple(scenarios) for task, scenarios in entry["tasks"].items()}
    for task, scenarios in tasks.items():
        if not set(scenarios) <= set(SCENARIOS):
            raise CispbenchError(f"{path}: {name} {task} lists {scenarios}; scenarios are {', '.join(SCENARIOS)}.")
    return Dataset(name, entry["title"], entry["classes"], tasks, tuple(entry["paper_table"]))


@cache
def published_orders() -> dict[str, dict[str, dict[str, tuple[tuple[int, ...], ...]]]]:
    """Return data set -> task -> order -> class numbers of each step, from ``orders.yaml``; ``a`` is not among them."""
    return {
        name: {
            task: {order: tuple(tuple(step) for step in steps) for order, steps in orders.items()}
            for task, orders in tasks.items()
        }
        for name, tasks in load_yaml(_HERE / "orders.yaml").items()
    }
