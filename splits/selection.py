"""Which images a step trains on, and the counts and digests that a user's data must reproduce."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Set
from functools import cache
from typing import Any

from cispbench.splits.datasets import dataset
from cispbench.splits.errors import DataError, SettingError, nearest
from cispbench.splits.settings import VOID, Setting, parse_setting
from cispbench.splits.strict_yaml import load_yaml

GoldenList = tuple[int, str]
_read_figures = cache(load_yaml)


def select_images(presence: Mapping[str, Set[int]], setting: Setting, step: int) -> list[str]:
    """Return the sorted ids of the images that ``step`` trains on.

    ``presence``: for every image the class numbers in its mask; background (0) and void (255) may be among them and
    are never counted. Overlapped: images with a class of the step. Disjoint: those of them whose classes have all
    been learnt by then, in the setting's own order. Partitioned: images whose drawn class (``draw_classes``) is of the
    step. A setting of a single step (``Setting.joint()``) takes every image with a class. Raises SettingError for
    partitioned settings of given lists, DataError for a number that is no class.
    """
    seen = frozenset(setting.classes_seen(step)) | {0, VOID}
    _check_numbers(presence, setting)
    if len(setting.steps) == 1:
        return sorted(image for image, classes in presence.items() if classes - {0, VOID})
    new = frozenset(setting.steps[step].classes)
    if setting.partition_seed is not None:
        drawn = draw_classes(presence, setting.partition_seed)
        return sorted(image for image, number in drawn.items() if number in new)
    if setting.given_lists:
        raise SettingError(
            f"{setting.name} cannot be computed from the masks: its images were drawn with a seed that is lost.",
            hint=f"{setting.name}-s0 is drawn with seed 0; or choose overlapped or disjoint.",
        )
    chosen = (image for image, classes in presence.items() if not new.isdisjoint(classes))
    if setting.scenario == "disjoint":
        return sorted(image for image in chosen if presence[image] <= seen)
    return sorted(chosen)


def draw_classes(presence: Mapping[str, Set[int]], seed: int) -> dict[str, int]:
    """Return the class number drawn for every image that holds a class: the one that it belongs to.

    The images come in the order of their ids; each draws one of its classes, listed by number, all equally likely.
    Task and order have no say, so that all settings of one seed agree. ``presence`` is of the whole training list:
    another list draws otherwise. Source: CISS_partitioned at 7353b46, data_loader/dataset.py.
    """
    import numpy as np  # here: whoever selects nothing is spared its import

    choices = {image: sorted(presence[image] - {0, VOID}) for image in sorted(presence)}
    choices = {image: classes for image, classes in choices.items() if classes}
    # Draws what ``choice(k)``, called once an image, draws; the recorded lists say so.
    places = np.random.RandomState(seed).randint(0, [len(classes) for classes in choices.values()])
    return {image: classes[place] for (image, classes), place in zip(choices.items(), places.tolist(), strict=True)}


def digest(ids: Iterable[str]) -> str:
    """Return the SHA-256 (hexadecimal) of the sorted ids joined by newlines, without one at the end."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def has_golden(name: str) -> bool:
    """Return whether figures are shipped for a data set. Raises SettingError for an unknown one."""
    return dataset(name).published is not None


def golden_steps(setting: Setting) -> list[GoldenList] | None:
    """Return (images, SHA-256) of each step's training list, or None where no figures are shipped."""
    if len(setting.steps) == 1 or not has_golden(setting.dataset):
        return None
    steps = _golden(setting.dataset)["settings"].get(setting.name.rpartition(":")[2])
    return None if steps is None else [(entry["images"], entry["sha256"]) for entry in steps]


def golden_settings(name: str) -> list[Setting]:
    """Return the settings of a data set for which figures are shipped, in their file's order. Raises SettingError."""
    if not has_golden(name):
        return []
    return [parse_setting(f"{name}:{setting}") for setting in _golden(name)["settings"]]


def golden_list(name: str, split: str) -> GoldenList:
    """Return (images, SHA-256) of a data set's whole ``train`` or ``val`` list.

    Raises SettingError for an unknown data set or split, DataError if no figures are shipped for the data set.
    """
    splits = ("train", "val")
    if split not in splits:
        raise SettingError(f"unknown split {split!r}.", hint=nearest(split, splits))
    entry = _golden(name)[split]
    return entry["images"], entry["sha256"]


def _check_numbers(presence: Mapping[str, Set[int]], setting: Setting) -> None:
    """Refuse numbers that are no class, naming the first image that holds one; one union is far cheaper than a loop."""
    legal = frozenset(range(setting.num_foreground + 1)) | {VOID}
    if set[int]().union(*presence.values()) <= legal:
        return
    image, classes = min((image, classes) for image, classes in presence.items() if not classes <= legal)
    raise DataError(
        f"{image} holds {sorted(classes - legal)}, which is no class of {setting.dataset} "
        f"(1 to {setting.num_foreground}; 0 background, {VOID} void).",
        hint="Check the mask, or rebuild the index of classes.",
    )


def _golden(name: str) -> dict[str, Any]:
    path = dataset(name).published
    if path is None:
        raise DataError(f"no figures are published for the data set {name}.", hint="Its own images are needed.")
    figures: dict[str, Any] = _read_figures(path)[name]
    return figures
