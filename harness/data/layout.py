"""Where a data set's images and masks lie in a folder: the part of a data set's plug-in that looks at files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol

from cispbench.harness.data.decode import Pair
from cispbench.splits.datasets import dataset
from cispbench.splits.errors import CispbenchError, DataError


class PairLister(Protocol):
    """A function that lists the files of a split."""

    def __call__(self, folder: Path, split: str, masks_only: bool = False) -> dict[str, Pair]:
        """Return the files of ``train`` or ``val`` by image id; no image or mask is opened.

        ``masks_only``: the folder of the images may be missing. Raises DataError for a missing folder or list.
        """
        ...


@dataclass(frozen=True)
class Layout:
    """A data set's folders; a ``splits.datasets.Dataset`` names one as ``module:attribute``.

    ``folders``: where the data set may lie below the data root, the first match wins ("." is the root itself).
    ``markers``: folders by one of which it is recognised. ``list_pairs``: see ``PairLister``.
    ``how_to_get``: a sentence for people who do not have the data.
    The rest serves ``cispbench data check``, which guesses why data differ from the published lists. ``image_id``:
    a regular expression of all ids. ``train_list``: the name of the right training list. ``other_lists``: lengths of
    training lists that people take by mistake -> their names.
    """

    folders: tuple[str, ...]
    markers: tuple[str, ...]
    list_pairs: PairLister
    how_to_get: str
    image_id: str = ".*"
    train_list: str = "the published list"
    other_lists: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitFolders:
    """A ``PairLister`` for data sets with a folder of images and a folder of masks a split, files of the same stem.

    ``images`` and ``masks``: split -> folder. An image without a mask, or a mask without an image, is listed with both
    paths, and reading it raises an error that names the missing file.
    """

    images: Mapping[str, str]
    masks: Mapping[str, str]
    how_to_get: str
    image_suffix: str = ".jpg"
    mask_suffix: str = ".png"

    def __call__(self, folder: Path, split: str, masks_only: bool = False) -> dict[str, Pair]:
        """Return the split's files by id, the stem of their names. Raises DataError for a missing or empty folder."""
        images, masks = folder / self.images[split], folder / self.masks[split]
        stems: set[str] = set()
        for part, suffix in ((images, self.image_suffix), (masks, self.mask_suffix))[masks_only:]:
            if not part.is_dir():
                raise DataError(f"the folder {part} does not exist.", hint=self.how_to_get)
            found = {path.stem for path in part.iterdir() if path.suffix == suffix}
            if not found:
                raise DataError(f"the folder {part} holds no {suffix} file.", hint=self.how_to_get)
            stems |= found
        return {
            stem: Pair(images / f"{stem}{self.image_suffix}", masks / f"{stem}{self.mask_suffix}")
            for stem in sorted(stems)
        }


def layout_of(name: str) -> Layout:
    """Import a data set's layout. Raises SettingError for an unknown data set, CispbenchError for a broken layout."""
    target = dataset(name).layout
    place = f"the layout of the data set {name!r}"
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise CispbenchError(f"{place}: {target!r} cannot be imported: {error}.") from error
    if not isinstance(found, Layout):
        raise CispbenchError(f"{place} ({target}) is not a {Layout.__module__}.Layout.")
    return found
