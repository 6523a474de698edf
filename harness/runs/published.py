"""The published counts and digests of a data set, in place of its images: enough to plan, not to train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

from cispbench.harness.data.source import not_found
from cispbench.harness.runs.image_lists import ImageLists
from cispbench.harness.step import Companion
from cispbench.splits.errors import DataError
from cispbench.splits.selection import golden_list, golden_steps
from cispbench.splits.settings import Setting

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = "published "  # how the fingerprint of data begins of which only counts are known
UNKNOWN = "?"  # stands for every id of a list of which only the length is known


@dataclass(frozen=True)
class PublishedMaps:
    """The maps of a companion of which nothing is known; see ``cispbench.harness.data.companions.Maps``."""

    companion: Companion
    dataset: str

    @property
    def fingerprint(self) -> str:
        """Return a name that no maps have."""
        return f"{PUBLISHED}{self.dataset}/{self.companion.folder}"

    def read(self, image_id: str) -> NoReturn:
        """Raise DataError: there are no maps."""
        raise not_found(self.dataset, None)


class PublishedSource:
    """A source without images; see ``cispbench.harness.data.source.Source``."""

    kind: Literal["full"] = "full"

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset

    @property
    def fingerprint(self) -> str:
        """Return a name that no data has: keys made with it are only good for comparison with each other."""
        return f"{PUBLISHED}{self.dataset}"

    def ids(self, split: str) -> tuple[str, ...]:
        """Return as many unknown ids as the split has images."""
        return (UNKNOWN,) * golden_list(self.dataset, split)[0]

    def presence(self, split: str) -> NoReturn:
        """Raise DataError: there are no masks."""
        raise not_found(self.dataset, None)

    def read(self, split: str, image_id: str) -> tuple[Tensor, Tensor]:
        """Raise DataError: there are no images."""
        raise not_found(self.dataset, None)

    def maps(self, companion: Companion, split: str, ids: Sequence[str]) -> PublishedMaps:
        """Return maps that cannot be read."""
        return PublishedMaps(companion, self.dataset)


class PublishedLists(ImageLists):
    """The published lists by length and digest alone."""

    def __init__(self, source: PublishedSource) -> None:
        super().__init__(source)
        self._dataset = source.dataset

    def train(self, setting: Setting, step: int) -> tuple[tuple[str, ...], str]:
        """Return unknown ids, as many as published, and the published digest. Raises DataError where none is."""
        if len(setting.steps) == 1:  # all classes in one step: every training image of both data sets holds one
            count, sha256 = golden_list(self._dataset, "train")
        else:
            steps = golden_steps(setting)
            if steps is None:
                raise DataError(
                    f"no data found, and no counts are published for {setting.name}.",
                    hint=f"Leave it out, or give the data. {not_found(self._dataset, None)}",
                )
            count, sha256 = steps[step]
        return (UNKNOWN,) * count, sha256

    def test_digest(self) -> str:
        """Return the published digest of the test list."""
        return golden_list(self._dataset, "val")[1]
