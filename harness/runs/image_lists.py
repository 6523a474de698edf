"""Which images each step trains on, selected once for all runs that are planned on the same data."""

from __future__ import annotations

from collections.abc import Sequence

from cispbench.harness.data.companions import Maps
from cispbench.harness.data.source import Source
from cispbench.harness.step import Companion
from cispbench.splits.errors import DataError
from cispbench.splits.selection import digest, golden_steps, select_images
from cispbench.splits.settings import Setting


class ImageLists:
    """The lists of images on a source, each selected once however many runs are planned with it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._presence: dict[str, frozenset[int]] | None = None
        self._selected: dict[tuple[Setting, int], tuple[tuple[str, ...], str]] = {}
        self._tested: str | None = None
        self._maps: dict[tuple[Companion, Setting | None, tuple[int, ...]], Maps] = {}

    def train(self, setting: Setting, step: int) -> tuple[tuple[str, ...], str]:
        """Return the ids that ``step`` trains on, and their digest.

        Raises DataError for a step without images, and for a full data set whose masks make another list than is
        published: no store would take the records of its runs.
        """
        if (setting, step) not in self._selected:
            if self._presence is None:
                self._presence = self._source.presence("train")
            images = tuple(select_images(self._presence, setting, step))
            if not images:
                classes = ", ".join(map(str, setting.steps[step].classes))
                raise DataError(
                    f"step {step} of {setting.name} has no training image: none of {len(self._presence)} holds the "
                    f"classes {classes} (in the scenario {setting.scenario}).",
                    hint="Use more data, or another task.",
                )
            self._selected[setting, step] = images, digest(images)
            self._compare(setting, step)
        return self._selected[setting, step]

    def _compare(self, setting: Setting, step: int) -> None:
        published = golden_steps(setting) if self._source.kind == "full" else None
        images, list_sha256 = self._selected[setting, step]
        if published is not None and (len(images), list_sha256) != published[step]:
            raise DataError(
                f"step {step} of {setting.name} selects {len(images)} training images, which are not the "
                f"{published[step][0]} of the published list: all images are there, and masks hold other classes.",
                hint="`cispbench data check` tells which masks are not the published ones.",
            )

    def maps(self, companion: Companion, setting: Setting, steps: Sequence[int]) -> Maps:
        """Return the maps of the images of ``steps``. Raises DataError for maps that break a rule."""
        key = companion, setting, tuple(steps)
        if key not in self._maps:
            ids = {image_id for step in steps for image_id in self.train(setting, step)[0]}
            self._maps[key] = self._source.maps(companion, "train", sorted(ids))
        return self._maps[key]

    def test_maps(self, companion: Companion) -> Maps:
        """Return the maps of all test images. Raises DataError for maps that break a rule."""
        key = companion, None, ()
        if key not in self._maps:
            self._maps[key] = self._source.maps(companion, "val", self._source.ids("val"))
        return self._maps[key]

    def test_digest(self) -> str:
        """Return the digest of the test images' ids."""
        if self._tested is None:
            self._tested = digest(self._source.ids("val"))
        return self._tested
