"""The graph of a sweep: every step once, with the runs that need it and its state. Pure.

Two stores decide the state of a step: the step store holds trained weights, the store of records holds results. A
sweep knows seven states:

- done: the step store has its weights, and every run that needs it has its record. Nothing is to do.
- trained: the step store has its weights, but a run has no record. The step is tested, if need be, and recorded.
- recorded: every run has its record, but the weights are gone. Nothing is to do, unless a step that builds on it has to
  be trained: that needs the weights, and the step becomes missing.
- missing: neither weights nor all records. The step is trained, tested and recorded.
- stale: missing, and a record of the same method, setting, seed, profile, model and step has another key, because data,
  code or recipe changed since. The step is trained under its new key, and the old record stays; the reason names the
  change, which may lie in a step before.
- damaged: a file of the step is missing, or its manifest is not one. The step is trained again; the damaged files are
  kept. (A wrong checksum is found when the weights are loaded, not by a plan.)
- unknown: no data is at hand, and no key can be made without. Only a plan (``--plan``) has such steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cispbench.harness.runs.plan import PlannedStep, RunPlan, step_iterations

State = Literal["done", "recorded", "trained", "missing", "damaged", "stale", "unknown"]  # see above
TO_TRAIN = ("missing", "damaged", "stale", "unknown")


@dataclass(frozen=True)
class Need:
    """One run that needs a step, and the step as this run plans it."""

    run: RunPlan
    planned: PlannedStep


@dataclass(frozen=True)
class StepState:
    """The state of a step, and why it is stale or damaged, or that a finished one was trained by other code.

    ``seconds`` of training and ``bytes`` of weights are expectations, None if nothing comparable was measured.
    """

    state: State
    reason: str = ""
    seconds: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Node:
    """A step of the graph: its content ``key``, the key of the ``previous`` step, and the fields of its StepState."""

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
        """The methods of the runs that need it."""
        return tuple(dict.fromkeys(need.run.method.title for need in self.needs))

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings of the runs that need it."""
        return tuple(dict.fromkeys(need.run.setting.name for need in self.needs))

    @property
    def shared_by(self) -> int:
        """The number of runs that need it."""
        return len(self.needs)

    @property
    def to_train(self) -> bool:
        """Whether it has to be trained."""
        return self.state in TO_TRAIN

    @property
    def name(self) -> str:
        """Its name for people: ``mib overlapped-15-1 seed 0 step 2/5``, or ``3 methods ...`` if they share it."""
        first = self.needs[0]
        method = first.run.method.title if len(self.methods) == 1 else f"{len(self.methods)} methods"
        setting = first.run.setting.name if len(self.settings) == 1 else f"{len(self.settings)} settings"
        last = {need.run.steps[-1].step for need in self.needs}
        step = f"{self.step}/{last.pop()}" if len(last) == 1 else f"{self.step}"
        return f"{method} {setting} seed {first.run.seed} step {step}"


@dataclass(frozen=True)
class TrainingCost:
    """The number of steps to train, and their images and iterations in all."""

    steps: int
    images: int
    iterations: int


@dataclass(frozen=True)
class Graph:
    """The steps of a sweep; each one comes after the step that it builds on."""

    nodes: tuple[Node, ...]

    def shared(self) -> TrainingCost:
        """Return the cost of all steps if each is trained once."""
        return _cost((node, 1) for node in self.nodes)

    def unshared(self) -> TrainingCost:
        """Return the cost of all steps if every run trains all its steps itself."""
        return _cost((node, node.shared_by) for node in self.nodes)

    def remaining(self) -> TrainingCost:
        """Return the cost of the steps that have still to be trained."""
        return _cost((node, 1) for node in self.nodes if node.to_train)

    def to_do(self) -> list[Node]:
        """Return the steps to train or to record; each one comes after the step that it builds on."""
        return [node for node in self.nodes if node.to_train or node.state == "trained"]

    def remaining_seconds(self) -> tuple[float, int]:
        """Return the expected seconds of training, and the number of steps for which none are known."""
        expected = [node.seconds for node in self.nodes if node.to_train]
        return sum(value for value in expected if value is not None), expected.count(None)

    def remaining_bytes(self) -> tuple[int, int]:
        """Return the expected bytes of the new weights, and the number of steps for which none are known."""
        expected = [node.bytes for node in self.nodes if node.to_train]
        return sum(value for value in expected if value is not None), expected.count(None)

    def states(self) -> dict[str, int]:
        """Return how many steps are in each state that occurs."""
        return dict(Counter(node.state for node in self.nodes))

    def priorities(self) -> dict[str, int]:
        """Return for each key the iterations of the longest chain of trainings that begins with the step.

        Steps with the highest number are started first: the longest chain decides when the sweep ends.
        """
        found: dict[str, int] = {}
        longest_after: dict[str, int] = {}
        for node in reversed(self.nodes):
            found[node.key] = (node.iterations if node.to_train else 0) + longest_after.get(node.key, 0)
            if node.previous is not None:
                longest_after[node.previous] = max(longest_after.get(node.previous, 0), found[node.key])
        return found


def build_graph(runs: Sequence[RunPlan], find: Callable[[str, Sequence[Need], int], StepState]) -> Graph:
    """Return the graph of the runs' steps; ``find`` is asked for the state by a step's key, needs and iterations."""
    needs: dict[str, list[Need]] = {}
    for run in runs:
        for planned in run.steps:
            needs.setdefault(planned.key, []).append(Need(run, planned))
    nodes = [_node(key, entries, find) for key, entries in needs.items()]
    nodes.sort(key=lambda node: node.step)  # stable: the runs' order within a step
    built_on: set[str] = set()
    # From the last step to the first: a recorded step that turns missing needs the weights of the step before it, too.
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        if node.state == "recorded" and node.key in built_on:
            nodes[index] = node = replace(node, state="missing", reason="its weights are gone, and are needed again")
        if node.to_train and node.previous is not None:
            built_on.add(node.previous)
    return Graph(tuple(nodes))


def _node(key: str, needs: Sequence[Need], find: Callable[[str, Sequence[Need], int], StepState]) -> Node:
    first = needs[0]
    images, step = len(first.planned.images), first.planned.step
    phases = [first.run.recipe.phase(step, name) for name in first.planned.phases]
    iterations = sum(step_iterations(phase, first.run.epoch_images(step)) for phase in phases)
    found = find(key, needs, iterations)
    return Node(
        key, first.planned.previous_key, step, tuple(needs), images, iterations,
        found.state, found.reason, found.seconds, found.bytes,
    )  # fmt: skip


def _cost(counted: Iterable[tuple[Node, int]]) -> TrainingCost:
    steps = images = iterations = 0
    for node, times in counted:
        steps += times
        images += times * node.images
        iterations += times * node.iterations
    return TrainingCost(steps, images, iterations)
