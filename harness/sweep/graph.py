"""The graph of a sweep: every step once, with the runs that need it and what is known of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cispbench.harness.runs.plan import PlannedStep, RunPlan, step_iterations

State = Literal["done", "recorded", "trained", "missing", "damaged", "stale", "unknown"]
TO_TRAIN = ("missing", "damaged", "stale", "unknown")


@dataclass(frozen=True)
class Need:
    """One run's need of a step."""

    run: RunPlan
    planned: PlannedStep


@dataclass(frozen=True)
class Finding:
    """What the stores hold of a step; ``reason`` says why a stale or damaged one is that, ``seconds`` and ``bytes``
    what its training and its weights are expected to cost, None where nothing comparable was measured."""

    state: State
    reason: str = ""
    seconds: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Node:
    """A step of the graph; ``key`` is its content key, ``previous`` that of the step it builds on.

    ``state``: done (published, and recorded for all its runs), recorded (so too, but the weights are gone, which
    nobody needs), trained (published; a record is missing), missing, damaged, stale (the store of records holds it
    under another key), unknown (no data to tell by).
    """

    key: str
    previous: str | None
    step: int
    needs: tuple[Need, ...]
    images: int
    iterations: int
    state: State
    reason: str
    seconds: float | None
    bytes: int | None

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of its runs."""
        return tuple(dict.fromkeys(need.run.method.name for need in self.needs))

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings of its runs."""
        return tuple(dict.fromkeys(need.run.setting.name for need in self.needs))

    @property
    def shared_by(self) -> int:
        """The number of its runs."""
        return len(self.needs)

    @property
    def to_train(self) -> bool:
        """Whether a training is needed."""
        return self.state in TO_TRAIN

    @property
    def name(self) -> str:
        """What a person calls it: ``mib overlapped-15-1 seed 0 step 2/5``, and how many more it serves."""
        first = self.needs[0]
        method = first.run.method.name if len(self.methods) == 1 else f"{len(self.methods)} methods"
        setting = first.run.setting.name if len(self.settings) == 1 else f"{len(self.settings)} settings"
        last = {need.run.steps[-1].step for need in self.needs}
        step = f"{self.step}/{last.pop()}" if len(last) == 1 else f"{self.step}"
        return f"{method} {setting} seed {first.run.seed} step {step}"


@dataclass(frozen=True)
class Amount:
    """Trainings, and the images and iterations in them."""

    steps: int
    images: int
    iterations: int


@dataclass(frozen=True)
class Graph:
    """The steps of a sweep, each after the one it builds on."""

    nodes: tuple[Node, ...]

    def shared(self) -> Amount:
        """What all steps cost where each is trained once."""
        return _amount((node, 1) for node in self.nodes)

    def unshared(self) -> Amount:
        """What they cost where every run trains all of its own."""
        return _amount((node, node.shared_by) for node in self.nodes)

    def left(self) -> Amount:
        """What is still to train."""
        return _amount((node, 1) for node in self.nodes if node.to_train)

    def to_do(self) -> list[Node]:
        """Return what is to be trained or recorded, each after the one it builds on."""
        return [node for node in self.nodes if node.to_train or node.state == "trained"]

    def seconds_left(self) -> tuple[float, int]:
        """Return the expected seconds of what is to train, and the number of steps that nothing measured covers."""
        waiting = [node.seconds for node in self.nodes if node.to_train]
        return sum(value for value in waiting if value is not None), waiting.count(None)

    def bytes_left(self) -> tuple[int, int]:
        """Return the expected bytes of weights to come, and the number of steps that nothing measured covers."""
        waiting = [node.bytes for node in self.nodes if node.to_train]
        return sum(value for value in waiting if value is not None), waiting.count(None)

    def states(self) -> dict[str, int]:
        """Return how many steps are in each state that occurs."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            counts[node.state] = counts.get(node.state, 0) + 1
        return counts


def build_graph(runs: Sequence[RunPlan], find: Callable[[str, Sequence[Need], int], Finding]) -> Graph:
    """Return the graph of the runs' steps; ``find`` is asked for each step's key, needs and iterations.

    A step of which only the records are left is trained again if a step that builds on it is to be trained.
    """
    needs: dict[str, list[Need]] = {}
    for run in runs:
        for planned in run.steps:
            needs.setdefault(planned.key, []).append(Need(run, planned))
    nodes = [_node(key, entries, find) for key, entries in needs.items()]
    nodes.sort(key=lambda node: node.step)  # stable: the runs' order within a step
    wanted: set[str] = set()
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        if node.state == "recorded" and node.key in wanted:
            nodes[index] = node = replace(node, state="missing", reason="its weights are gone, and are needed again")
        if node.to_train and node.previous is not None:
            wanted.add(node.previous)
    return Graph(tuple(nodes))


def _node(key: str, needs: Sequence[Need], find: Callable[[str, Sequence[Need], int], Finding]) -> Node:
    first = needs[0]
    images = len(first.planned.images)
    iterations = step_iterations(first.run.recipe.phase(first.planned.step), images)
    found = find(key, needs, iterations)
    return Node(
        key, first.planned.previous_key, first.planned.step, tuple(needs), images, iterations,
        found.state, found.reason, found.seconds, found.bytes,
    )  # fmt: skip


def _amount(counted: Iterable[tuple[Node, int]]) -> Amount:
    steps = images = iterations = 0
    for node, times in counted:
        steps += times
        images += times * node.images
        iterations += times * node.iterations
    return Amount(steps, images, iterations)
