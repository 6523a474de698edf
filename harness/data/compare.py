"""Lists of images and settings of a data set held against the counts and digests that are published for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass

from cispbench.harness.data.index import Presence
from cispbench.harness.data.source import SPLITS
from cispbench.splits.errors import SettingError
from cispbench.splits.selection import (
    GoldenList,
    digest,
    golden_list,
    golden_settings,
    golden_steps,
    has_golden,
    select_images,
)
from cispbench.splits.settings import Setting


@dataclass(frozen=True)
class ListCheck:
    """A list of images, the ``train`` or ``val`` list or that of a step ("3"), as published and as found."""

    name: str
    published: GoldenList
    found: GoldenList

    @property
    def agrees(self) -> bool:
        """Whether both hold the same ids."""
        return self.published == self.found


@dataclass(frozen=True)
class SettingCheck:
    """A setting's training lists, step by step.

    Of a setting of given lists there is one entry, "all": its images were drawn with a seed that is lost, so that only
    their number can be held against the images with a class; the digest is left empty.
    """

    setting: Setting
    steps: tuple[ListCheck, ...]

    @property
    def first_difference(self) -> ListCheck | None:
        """Return the first step that differs, or None."""
        return next((step for step in self.steps if not step.agrees), None)


@dataclass(frozen=True)
class Comparison:
    """Whole lists and settings of a data set, as published and as found."""

    dataset: str
    lists: tuple[ListCheck, ...]
    settings: tuple[SettingCheck, ...]

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return all(part.agrees for part in self.lists) and not any(part.first_difference for part in self.settings)


def compare(dataset: str, presence: Presence, settings: Iterable[Setting]) -> Comparison:
    """Hold both lists and every step of the settings against the published figures.

    ``presence``: split -> id -> class numbers. A data set without published figures has no lists to compare. Raises
    SettingError for a setting without figures.
    """
    splits = SPLITS if has_golden(dataset) else ()
    lists = tuple(ListCheck(split, golden_list(dataset, split), _figures(presence[split])) for split in splits)
    return Comparison(dataset, lists, tuple(_compare_setting(setting, presence["train"]) for setting in settings))


def _compare_setting(setting: Setting, presence: Mapping[str, Set[int]]) -> SettingCheck:
    published = golden_steps(setting)
    if published is None:
        names = ", ".join(known.name for known in golden_settings(setting.dataset))
        raise SettingError(
            f"no figures are published for {setting.name}.", hint=f"Choose among {names}." if names else "Leave it out."
        )
    if setting.given_lists:
        images = len(select_images(presence, setting.joint(), 0))
        return SettingCheck(setting, (ListCheck("all", (sum(count for count, _ in published), ""), (images, "")),))
    found = (_figures(select_images(presence, setting, step)) for step in range(len(setting.steps)))
    both = enumerate(zip(published, found, strict=True))
    return SettingCheck(setting, tuple(ListCheck(str(step), *figures) for step, figures in both))


def _figures(ids: Collection[str]) -> GoldenList:
    return len(ids), digest(ids)
