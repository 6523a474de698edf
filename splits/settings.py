"""Settings: which classes are learnt at which step, on which data set, under which scenario.

A class *number* is the data set's own (1..20 or 1..150, 0 background); a class *index* is its place in the order of
learning, which is what models, training labels and confusion matrices use. In the natural order both agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

from cispbench.splits.datasets import NATURAL_ORDER, SCENARIOS, SHORT_NAMES, Dataset, dataset, datasets, task_numbers
from cispbench.splits.errors import SettingError, closest, nearest

VOID = 255
ILLEGAL = -1
_NAME = re.compile(r"([A-Za-z]+)-([0-9]+-[0-9]+)(?:-(?!s[0-9]+$)([A-Za-z0-9]+))?(?:-s([0-9]+))?")
MOST_SEED = 2**32 - 1  # what numpy.random.RandomState takes


@dataclass(frozen=True)
class Step:
    """One step: its index from 0 and the class numbers it learns, in order of learning, background left out."""

    index: int
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """A data set's classes cut into steps, with the rule that selects images; make one by ``parse_setting``.

    ``partition_seed``: of a partitioned setting, the seed that shares out its images; None where they are given lists.
    Every method that takes a step's index raises SettingError if the setting has no such step.
    """

    name: str
    dataset: str
    scenario: str
    task: str
    order: str
    steps: tuple[Step, ...]
    partition_seed: int | None = None

    def __post_init__(self) -> None:
        learnt = [number for step in self.steps for number in step.classes]
        if sorted(learnt) != list(range(1, len(learnt) + 1)) or not all(step.classes for step in self.steps):
            raise SettingError(f"the steps of {self.name!r} do not hold every class of {self.dataset} exactly once.")
        if [step.index for step in self.steps] != list(range(len(self.steps))):
            raise SettingError(f"the steps of {self.name!r} are not numbered 0, 1, 2, ...")

    @property
    def num_foreground(self) -> int:
        """The classes of the data set, background left out."""
        return sum(len(step.classes) for step in self.steps)

    @property
    def last_step(self) -> int:
        """The index of the last step."""
        return len(self.steps) - 1

    @property
    def given_lists(self) -> bool:
        """Whether its images are lists that somebody drew, and that no rule can make again."""
        return self.scenario == "partitioned" and self.partition_seed is None

    @property
    def learning_order(self) -> tuple[int, ...]:
        """Class numbers in order of learning, background (0) first; a class's place in it is its index."""
        return (0, *self.classes_seen(self.last_step))

    def classes_seen(self, step: int) -> tuple[int, ...]:
        """Return the class numbers learnt up to and including ``step``, in order of learning, without background."""
        self._check(step)
        return tuple(number for part in self.steps[: step + 1] for number in part.classes)

    def num_classes(self, step: int) -> int:
        """Return how many classes are known after ``step``, background included."""
        return 1 + len(self.classes_seen(step))

    def old_classes(self, step: int) -> int:
        """Return how many classes were known before ``step``, background included; 0 at step 0."""
        self._check(step)
        return self.num_classes(step - 1) if step else 0

    def new_classes(self, step: int) -> int:
        """Return how many classes ``step`` adds; background is among step 0's."""
        return self.num_classes(step) - self.old_classes(step)

    def label_table(self, step: int) -> tuple[int, ...]:
        """Return the training label of each of the 256 values of a mask.

        The step's classes become their index, background and every other class 0, void (255) stays 255 and a value
        that is no class of the data set becomes -1: such a mask is to be refused.
        """
        self._check(step)
        table = self._blank_table()
        table[1 : self.num_foreground + 1] = [0] * self.num_foreground
        for index, number in enumerate(self.steps[step].classes, start=max(1, self.old_classes(step))):
            table[number] = index
        return tuple(table)

    def test_table(self) -> tuple[int, ...]:
        """Return the test label of each of the 256 values of a mask: the class's index, over all classes.

        Background and ADE20K's label 0 become 0, void stays 255, a value that is no class becomes -1.
        """
        table = self._blank_table()
        for index, number in enumerate(self.learning_order):
            table[number] = index
        return tuple(table)

    def joint(self) -> Setting:
        """Return the same setting, name kept, with one step that learns all classes in the same order."""
        return replace(self, steps=(Step(0, self.learning_order[1:]),))

    def _blank_table(self) -> list[int]:
        return [0, *[ILLEGAL] * (VOID - 1), VOID]

    def _check(self, step: int) -> None:
        if not 0 <= step < len(self.steps):
            raise SettingError(f"{self.name!r} has no step {step}.", hint=f"Its steps are 0 to {self.last_step}.")


@cache
def parse_setting(name: str) -> Setting:
    """Return the setting called ``<scenario>-<task>[-<order>][-s<seed>]``, for example ``overlapped-15-1-b``.

    The seed belongs to partitioned settings: ``partitioned-15-1-s1`` shares out the images with seed 1.

    The data set stands as a prefix (``ade:``) before the name or before the task; it may be left out for ``voc`` and
    ``ade``, unless the task could mean both. The result's name is canonical: no prefix where
    none is needed, no suffix for the natural order ``a``.
    Raises SettingError saying what is wrong and what to write.
    """
    prefix, bare = _split_prefix(name)
    match = _NAME.fullmatch(bare)
    if match is None:
        raise SettingError(f"{name!r} is no setting.", hint=_spelling_hint(bare))
    scenario, task, order = match[1], match[2], match[3] or NATURAL_ORDER
    if scenario not in SCENARIOS:
        close = closest(scenario, SCENARIOS)
        hint = f"Did you mean {name.replace(scenario, close, 1)!r}?" if close else nearest(scenario, SCENARIOS)
        raise SettingError(f"unknown scenario {scenario!r} in {name!r}.", hint=hint)
    home = _resolve(name, task, prefix)
    seed = _partition_seed(name, home, match)
    steps = _steps(name, home, task, order)
    canonical = f"{scenario}-{task}" if order == NATURAL_ORDER else f"{scenario}-{task}-{order}"
    if scenario == "partitioned" and seed != home.partition_seed:
        canonical += f"-s{seed}"
    # The name in records and keys: with the data set only where the task alone does not say it.
    if _candidates(task) != (home.name,):
        canonical = f"{home.name}:{canonical}"
    return Setting(canonical, home.name, scenario, task, order, steps, seed)


def list_settings(of: Iterable[str] | None = None) -> list[Setting]:
    """Return every listed setting in its natural order, data set by data set; ``of``: of these data sets alone."""
    return [
        parse_setting(f"{home.name}:{scenario}-{task}")
        for home in datasets(of).values()
        for task, scenarios in home.tasks.items()
        for scenario in scenarios
    ]


def paper_table() -> list[Setting]:
    """Return the settings of the benchmark paper's own table, data set by data set."""
    return [parse_setting(name) for home in datasets().values() for name in home.paper_table]


def _split_prefix(name: str) -> tuple[str | None, str]:
    """Take the data set's prefix off the name, from before the whole of it or from before its task."""
    front, colon, rest = name.partition(":")
    if not colon:
        return None, name
    scenario, dash, prefix = front.rpartition("-")
    return dataset(prefix).name, f"{scenario}{dash}{rest}"


def _with_short_names() -> dict[str, Dataset]:
    # Not all installed data sets: an installed package must not change what a name without a prefix means, and a broken
    # one must not stand in the way of the others.
    return {name: dataset(name) for name in SHORT_NAMES}


def _candidates(task: str) -> tuple[str, ...]:
    """Return the data sets that a task without a prefix may mean: those that list it, else those that it fits."""
    known = _with_short_names()
    listed = tuple(name for name, home in known.items() if task in home.tasks)
    return listed or tuple(name for name, home in known.items() if home.misfit(task) is None)


def _resolve(name: str, task: str, prefix: str | None) -> Dataset:
    if prefix is not None:
        reason = dataset(prefix).misfit(task)
        if reason is not None:
            raise SettingError(f"the task {task!r} of {name!r} does not fit: {reason}.", hint=_task_hint(prefix))
        return dataset(prefix)
    fitting = _candidates(task)
    if not fitting:
        known = _with_short_names()
        reasons = "; ".join(str(home.misfit(task)) for home in known.values())
        raise SettingError(f"the task {task!r} of {name!r} fits no data set: {reasons}.", hint=_task_hint(*known))
    if len(fitting) > 1:
        names = " or ".join(repr(f"{candidate}:{name}") for candidate in fitting)
        raise SettingError(f"the task {task!r} of {name!r} fits {' and '.join(fitting)}.", hint=f"Write {names}.")
    return dataset(fitting[0])


def _partition_seed(name: str, home: Dataset, match: re.Match[str]) -> int | None:
    """Return the seed that shares out a partitioned setting's images; None for any other, and for given lists."""
    scenario, task, _, seed = match.groups()
    if scenario != "partitioned":
        if seed is not None:
            raise SettingError(
                f"{name!r} does not exist: -s{seed} is a seed, and only partitioned settings have one.",
                hint=f"Leave out -s{seed}.",
            )
        return None
    if seed is not None:
        if int(seed) > MOST_SEED:
            raise SettingError(f"the seed of {name!r} is {seed}.", hint=f"Write a seed from 0 to {MOST_SEED}.")
        return int(seed)
    if home.partition_seed is None and scenario not in home.tasks.get(task, ()):
        listed = ", ".join(known for known, scenarios in home.tasks.items() if scenario in scenarios)
        hint = f"Partitioned of {home.title} are {listed}; {name}-s0 is drawn with seed 0."
        raise SettingError(f"{name!r} does not exist.", hint=hint)
    return home.partition_seed


def _steps(name: str, home: Dataset, task: str, order: str) -> tuple[Step, ...]:
    if order == NATURAL_ORDER:
        first, rest = task_numbers(task)
        starts = [0, *range(first, home.classes, rest), home.classes]
        return tuple(
            Step(index, tuple(range(start + 1, end + 1))) for index, (start, end) in enumerate(pairwise(starts))
        )
    orders = home.orders.get(task, {})
    if order not in orders:
        known = ", ".join([NATURAL_ORDER, *orders])
        raise SettingError(f"unknown order {order!r} in {name!r}.", hint=f"Orders of {home.name} {task}: {known}.")
    return tuple(Step(index, classes) for index, classes in enumerate(orders[order]))


def _spelling_hint(bare: str) -> str:
    if re.fullmatch(r"[0-9]+-[0-9]+(-[A-Za-z0-9]+)?", bare):
        return f"Put a scenario in front: {' or '.join(f'{scenario}-{bare}' for scenario in SCENARIOS[:2])}."
    shape = "Write <scenario>-<task> with an optional order, for example overlapped-15-1 or overlapped-15-1-b"
    close = closest(bare, [setting.name for setting in list_settings()])
    return f"{shape}. Did you mean {close!r}?" if close else f"{shape}; `cispbench list settings` shows them all."


def _task_hint(*names: str) -> str:
    listed = "; ".join(f"{name}: {', '.join(dataset(name).tasks)}" for name in names)
    return f"Listed tasks are {listed}. X-Y learns X classes, then Y at a time until none is left."
