"""Where images come from: the protocol every source keeps, and the folders of real data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cispbench.harness.data.companions import Maps, open_maps
from cispbench.harness.data.decode import Digests, Pair, read_pair
from cispbench.harness.data.index import Index, Presence, build_index
from cispbench.harness.data.layout import layout_of
from cispbench.harness.data.parallel import Progress
from cispbench.harness.step import Companion
from cispbench.splits.datasets import dataset as find_dataset
from cispbench.splits.errors import DataError
from cispbench.splits.selection import digest, golden_list, has_golden

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "val")
ENVIRONMENT = "CISPBENCH_DATA"
DEFAULT_ROOT = Path("data")
DataKind = Literal["full", "mini", "synthetic"]


class Source(Protocol):
    """Images with masks, in a ``train`` and a ``val`` split."""

    @property
    def dataset(self) -> str:
        """Return the data set's name."""
        ...

    @property
    def kind(self) -> DataKind:
        """Return ``full`` (the published lists), ``synthetic``, or ``mini`` for any other images of the data set."""
        ...

    @property
    def fingerprint(self) -> str:
        """Return a hexadecimal digest; equal data have equal ones in any folder."""
        ...

    def ids(self, split: str) -> tuple[str, ...]:
        """Return the split's image names, sorted."""
        ...

    def presence(self, split: str) -> dict[str, frozenset[int]]:
        """Return the class numbers in each image's mask; background (0) and void (255) are never among them."""
        ...

    def read(self, split: str, image_id: str) -> tuple[Tensor, Tensor]:
        """Return the image, uint8 (3, H, W), and its mask, uint8 (H, W), in class numbers; 255 is void."""
        ...

    def maps(self, companion: Companion, split: str, ids: Sequence[str]) -> Maps:
        """Return the maps of a companion for these images, all of them checked. Raises DataError."""
        ...


@dataclass(frozen=True)
class FolderSource:
    """Real data in a folder; made by ``find_source``, which has checked every file. Keeps the protocol ``Source``.

    ``cache``: the folder that keeps what is known of files. ``progress`` is called with (done, total) while maps are
    read.
    """

    dataset: str
    kind: DataKind
    fingerprint: str
    folder: Path
    pairs: Mapping[str, Mapping[str, Pair]]
    classes: Presence
    digests: Mapping[str, Mapping[str, Digests]]
    cache: Path
    progress: Progress | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave ``progress`` behind: processes that load images are sent the source, and show nothing."""
        return {**vars(self), "progress": None}

    def ids(self, split: str) -> tuple[str, ...]:
        """Return the split's image names, sorted."""
        return tuple(sorted(self.pairs[split]))

    def presence(self, split: str) -> dict[str, frozenset[int]]:
        """Return the class numbers in each image's mask; background (0) and void (255) are never among them."""
        return dict(self.classes[split])

    def read(self, split: str, image_id: str) -> tuple[Tensor, Tensor]:
        """Return the image, uint8 (3, H, W), and its mask, uint8 (H, W), in class numbers.

        Raises DataError, also for a file that is not the one whose content the fingerprint stands for.
        """
        return read_pair(self._pair(split, image_id), self.dataset, self.digests[split][image_id])

    def maps(self, companion: Companion, split: str, ids: Sequence[str]) -> Maps:
        """Return the maps of a companion for these images. Raises as ``companions.open_maps`` does."""
        masks = {image_id: self._pair(split, image_id).mask for image_id in ids}
        return open_maps(self.folder, companion, masks, self.cache, self.progress)

    def _pair(self, split: str, image_id: str) -> Pair:
        pair = self.pairs[split].get(image_id)
        if pair is None:
            raise DataError(
                f"{self.folder} has no {split} image {image_id!r}.",
                hint=f"Its {split} list has {len(self.pairs[split])} images; was the id taken from other data?",
            )
        return pair


def find_source(dataset: str, data_root: Path | None, cache: Path, progress: Progress | None = None) -> FolderSource:
    """Open the data set where ``locate`` finds it, and index it (read from ``cache`` if nothing has changed).

    ``progress`` is called with (done, total) while files are read, maps too. Raises DataError where nothing is found,
    listing what was looked for and how to get the data, for any list, image or mask that breaks a rule, and for an
    image on both lists. Warns of training images that are test images under another id: published data may hold some.
    """
    folder, pairs = list_data(dataset, data_root)
    index = build_index(dataset, pairs, cache, progress)
    # By content, since data sets may number the images of each split from 0.
    listed_twice = [train for train, test in index.in_both_splits() if train == test]
    if listed_twice:
        raise DataError(
            f"images on both lists of {folder}, so that test images would be trained on: {len(listed_twice):,}, such as"
            f" {listed_twice[0]!r}.",
            hint="Take them off one of the lists.",
        )
    note = same_images_note(index)
    if note is not None:
        warnings.warn(f"{folder}: {note}", stacklevel=2)
    kind = _kind(dataset, pairs)
    return FolderSource(
        dataset, kind, index.fingerprint, folder, pairs, index.presence, index.digests, cache, progress
    )  # fmt: skip


def same_images_note(index: Index) -> str | None:
    """Say which test images are the same files as training images; None if there are none."""
    same = index.in_both_splits()
    if not same:
        return None
    train, test = same[0]
    return f"test images that are training images, too: {len(same):,}, such as {test}, which is {train}."


def list_data(
    dataset: str, data_root: Path | None, masks_only: bool = False
) -> tuple[Path, dict[str, dict[str, Pair]]]:
    """Return the folder of the data set and, per split, the files of each id, as its lists name them.

    ``masks_only``: the folder of the images may be missing; an id's image is then a path where nothing lies. No image
    or mask is looked at. Raises DataError where nothing is found, and for a list that breaks a rule.
    """
    folder = locate(dataset, data_root)
    if folder is None:
        raise not_found(dataset, data_root)
    return folder, {split: layout_of(dataset).list_pairs(folder, split, masks_only) for split in SPLITS}


def locate(dataset: str, data_root: Path | None) -> Path | None:
    """Return the folder that holds the data set, complete or not, or None if there is none.

    Looked at below ``data_root``, else the folder the environment variable CISPBENCH_DATA names, else ``./data``.
    """
    layout = layout_of(dataset)
    root, _ = _root(data_root)
    for folder in layout.folders:
        if any((root / folder / marker).is_dir() for marker in layout.markers):
            return root / folder
    return None


def not_found(dataset: str, data_root: Path | None) -> DataError:
    """Return the error that says where ``locate`` has looked, for what, and how to get the data."""
    layout = layout_of(dataset)
    root, origin = _root(data_root)
    title = find_dataset(dataset).title
    if not root.is_dir():
        looked = f"the folder {root} ({origin}) does not exist."
    else:
        places = ", ".join(str(root / folder) for folder in layout.folders)
        looked = f"looked below {root} ({origin}) for {' or '.join(layout.markers)} in each of {places}."
    choice = f"Choose another folder by --data-root or {ENVIRONMENT}."
    return DataError(f"no {title} found: {looked}", hint=f"{layout.how_to_get} {choice}")


def root_in_force(data_root: Path | None) -> Path:
    """Return the absolute folder that ``locate`` looks below, the same for a process in another working folder."""
    return _root(data_root)[0].absolute()


def _root(data_root: Path | None) -> tuple[Path, str]:
    if data_root is not None:
        return data_root, "--data-root"
    named = os.environ.get(ENVIRONMENT)
    return (Path(named), ENVIRONMENT) if named else (DEFAULT_ROOT, "the default")


def _kind(dataset: str, pairs: Mapping[str, Mapping[str, Pair]]) -> DataKind:
    # Nobody can say that data are complete if no list is published, and records of "full" data are ranked.
    if not has_golden(dataset):
        return "mini"
    published = all((len(pairs[split]), digest(pairs[split])) == golden_list(dataset, split) for split in SPLITS)
    return "full" if published else "mini"
