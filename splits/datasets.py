"""Data sets: what one states about itself, and how the installed ones are found.

Data sets are plug-ins of the entry-point group ``cispbench.datasets``; ``voc`` and ``ade`` are found like any other.
``docs/add-dataset.md`` shows how a package adds one: an entry (``Dataset``), a ``harness.data.layout.Layout``, and an
entry point that leads to the entry, under the entry's own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cispbench.splits.errors import CispbenchError, SettingError
from cispbench.splits.plugins import Registry
from cispbench.splits.strict_fields import read_fields
from cispbench.splits.strict_yaml import load_yaml

SCENARIOS = ("overlapped", "disjoint", "partitioned")
NATURAL_ORDER = "a"
# Their settings may leave out the data set: published records name them so.
SHORT_NAMES = ("voc", "ade")
# Labels are bytes: 255 is void and 254 marks a value that is no class.
MOST_CLASSES = 253
_TASK = re.compile(r"([0-9]+)-([0-9]+)")
_NAME = re.compile(r"[a-z][a-z0-9_]*")

Colour = tuple[int, int, int]
Orders = Mapping[str, Mapping[str, tuple[tuple[int, ...], ...]]]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The facts of a data set. Raises CispbenchError for facts that contradict each other.

    ``name``: small letters, digits and ``_``; it is the prefix of the data set's settings and part of every key.
    ``title``: its name in tables. ``class_names``: of the classes 1, 2, ..., background left out.
    ``layout``: ``module:attribute`` of its ``harness.data.layout.Layout``; it is imported when images are looked for.
    ``tasks``: listed task (``X-Y``) -> its scenarios. ``orders``: task -> letter -> class numbers of each step, beside
    the natural order ``a``. ``paper_table``: the settings of the benchmark paper's own table.
    ``palette``: red, green, blue (0 to 255) of each class number from 0 on; None: VOC's customary colours.
    ``published``: a YAML file with the published counts and digests, laid out as ``splits/golden.yaml``; without one
    nothing can be compared, and the data always count as ``mini``.
    ``zero_is_void``: label 0 of a mask means "not labelled", not background. ``scene_objects``: the least and most
    objects of a synthetic scene. ``partition_seed``: of a partitioned setting whose name has no seed; None: its
    images are given lists, which no seed makes.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    layout: str
    tasks: Mapping[str, tuple[str, ...]]
    orders: Orders = field(default_factory=dict)
    paper_table: tuple[str, ...] = ()
    palette: tuple[Colour, ...] | None = None
    published: Path | None = None
    zero_is_void: bool = False
    scene_objects: tuple[int, int] = (2, 4)
    partition_seed: int | None = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise CispbenchError(f"the data set {self.name!r}: a name is made of small letters, digits and _.")
        if not 2 <= self.classes <= MOST_CLASSES or len(set(self.class_names)) < self.classes:
            raise self._wrong(f"it has 2 to {MOST_CLASSES} classes, each with a name of its own")
        if self.palette is not None and len(self.palette) != self.classes + 1:
            raise self._wrong(f"it has {len(self.palette)} colours for {self.classes} classes and background")
        for task, scenarios in self.tasks.items():
            if not set(scenarios) <= set(SCENARIOS):
                raise self._wrong(f"{task} lists {scenarios}; scenarios are {', '.join(SCENARIOS)}")
            if (reason := self.misfit(task)) is not None:
                raise self._wrong(f"the task {task} does not fit: {reason}")

    def _wrong(self, what: str) -> CispbenchError:
        return CispbenchError(f"the data set {self.name!r}: {what}.", hint="Correct its entry.")

    @property
    def classes(self) -> int:
        """The number of classes, background left out."""
        return len(self.class_names)

    def misfit(self, task: str) -> str | None:
        """Return why the task ``X-Y`` does not fit this data set, or None if it does. Raises SettingError."""
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


DATASETS: Registry[Dataset] = Registry(
    "cispbench.datasets",
    what="data set",
    wanted="a cispbench.splits.datasets.Dataset",
    fits=lambda loaded: isinstance(loaded, Dataset),
    unknown=SettingError,
)


def dataset(name: str) -> Dataset:
    """Return one data set by name. Raises SettingError with the nearest name, CispbenchError for a broken plug-in."""
    return DATASETS.load(name)


def datasets(names: Iterable[str] | None = None) -> dict[str, Dataset]:
    """Return data sets by name: voc and ade first, smaller ones before larger ones.

    ``names``: only these are loaded, and CispbenchError is raised for one that is broken. None: all that are installed;
    broken ones are left out with a warning. Raises CispbenchError if none is installed.
    """
    found = DATASETS.load_all() if names is None else [DATASETS.load(name) for name in names]
    if not found and names is None:  # as in an installation that is older than its code
        raise CispbenchError("no data set is installed.", hint="Install cispbench again: pip install -e .")
    found.sort(key=lambda home: (home.name not in SHORT_NAMES, home.classes, home.name))
    return {home.name: home for home in found}


def read_dataset(path: Path) -> Dataset:
    """Read an entry from a YAML file whose keys are the fields of ``Dataset``.

    Colours are written as hex RGB ("800000"), and ``published`` is a path relative to the file. Raises CispbenchError
    naming the file and the key.
    """
    content = load_yaml(path)
    if isinstance(content, dict):
        if content.get("palette"):
            content["palette"] = [tuple(bytes.fromhex(text)) for text in content["palette"]]
        if content.get("published"):
            content["published"] = path.parent / content["published"]
    return read_fields(Dataset, content, str(path), CispbenchError)
