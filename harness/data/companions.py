"""Companions: maps that are read beside the images, such as saliency; ``step.Companion`` says what they are.

A source checks all maps when a run is planned (``Source.maps``), and reads them during the training. What a map holds
is part of the keys of the steps that are trained with it, by ``Maps.fingerprint``.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from cispbench.harness.data.decode import COLOUR_TYPES, as_data_error, check_digest, read_regular_file, sha256
from cispbench.harness.data.index_file import stamp_of_file
from cispbench.harness.data.parallel import Progress, in_parallel, without_errors
from cispbench.harness.data.png import SIGNATURE, check_png
from cispbench.harness.machine.lazy import torch
from cispbench.harness.step import Companion
from cispbench.results.atomic import make_folder
from cispbench.results.checked_json import read_checked, write_checked
from cispbench.splits.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1  # raised whenever the index of maps, or a rule that they are checked by, changes
_WHAT = "map"  # in errors


class Maps(Protocol):
    """The maps of one companion for the images that were asked for."""

    @property
    def companion(self) -> Companion:
        """Return what the maps are."""
        ...

    @property
    def fingerprint(self) -> str:
        """Return a hexadecimal digest of the maps by image; equal maps have equal ones in any folder."""
        ...

    def read(self, image_id: str) -> Tensor:
        """Return an image's map, uint8 (H, W), of the image's size."""
        ...


def maps_fingerprint(companion: Companion, digests: Mapping[str, str]) -> str:
    """Return the fingerprint of maps by the digest of each image's: of their content, and what they are padded with."""
    lines = [companion.folder, companion.fill, *([image_id, digests[image_id]] for image_id in sorted(digests))]
    return sha256(json.dumps(lines, separators=(",", ":")).encode())


@dataclass(frozen=True)
class FolderMaps:
    """Maps in a folder, ``<id>.png``, all of them checked; made by ``open_maps``. Keeps the protocol ``Maps``."""

    companion: Companion
    folder: Path
    digests: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """Return a hexadecimal digest of the maps by image; equal maps have equal ones in any folder."""
        return maps_fingerprint(self.companion, self.digests)

    def read(self, image_id: str) -> Tensor:
        """Return an image's map, uint8 (H, W). Raises DataError for a file that has changed since it was checked."""
        path = self.folder / f"{image_id}.png"
        content = read_regular_file(path, _WHAT)
        check_digest(_WHAT, path, content, self.digests[image_id])
        return torch.from_numpy(np.array(_decode(path, content)))


def open_maps(
    root: Path, companion: Companion, masks: Mapping[str, Path], cache: Path, progress: Progress | None = None
) -> FolderMaps:
    """Return the maps of the images with these ``masks``, by id, below the data set's folder ``root``.

    New and changed files are read to their end and checked, and ``progress`` is called with (done, total) meanwhile;
    ``cache``: the folder that keeps the digests of the others.
    Raises DataError for a missing folder, and for a file that is missing, is no 8-bit grey PNG or has not the size of
    its image; StoreError for a cache that cannot be written.
    """
    folder = root / companion.folder
    if not folder.is_dir():
        raise DataError(
            f"the folder {folder} does not exist. It holds the companion {companion.name!r} of the images: <id>.png of "
            "each, 8-bit grey.",
            hint=companion.how_to_get or "Put the maps there, or use a method, or options of it, without them.",
        )
    ids = sorted(masks)
    found = in_parallel(lambda one: _stamp(folder / f"{one}.png", masks[one]), ids)
    stamps = dict(zip(ids, without_errors(found, len(ids), "maps"), strict=True))
    place = json.dumps([str(root.absolute()), companion.folder])
    path = cache / "index" / f"maps-{sha256(place.encode())}.json"
    stored = _load(path)
    unread = [one for one in ids if stored.get(one, ("", ""))[0] != stamps[one]]
    read = in_parallel(lambda one: _check(folder / f"{one}.png", masks[one]), unread, progress)
    fresh = dict(zip(unread, without_errors(read, len(unread), "maps"), strict=True))
    if fresh:
        stored |= {one: (stamps[one], digest) for one, digest in fresh.items()}
        make_folder(path.parent)
        write_checked(path, {"format": FORMAT, "maps": {one: " ".join(entry) for one, entry in stored.items()}})
    return FolderMaps(companion, folder, {one: stored[one][1] for one in ids})


def _stamp(path: Path, mask: Path) -> str:
    """Return how the file system describes a map and its mask, whose size it must have."""
    return f"{stamp_of_file(_WHAT, path)}/{stamp_of_file('mask', mask)}"


def _load(path: Path) -> dict[str, tuple[str, str]]:
    """Return stamp and digest of each map that the file knows; none, with a warning, if it is damaged."""
    try:
        record = read_checked(path)
        if record["format"] != FORMAT:
            return {}
        lines = {one: line.split(" ") for one, line in record["maps"].items()}
        return {one: (stamp, digest) for one, (stamp, digest) in lines.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"the index {path} is damaged ({error}); all maps are read again.", stacklevel=3)
        return {}


def _check(path: Path, mask: Path) -> str:
    """Return the digest of a map's file. Raises DataError for one that breaks a rule."""
    content = read_regular_file(path, _WHAT)
    found = _decode(path, content)
    with as_data_error(_WHAT, path):
        check_png(content)
    with as_data_error("mask", mask), Image.open(mask, formats=("PNG",)) as header:
        wanted = header.size
    if found.size != wanted:
        raise DataError(
            f"the map {path} has {found.height} x {found.width} pixels, its image {wanted[1]} x {wanted[0]} (height x "
            "width); both must be the same.",
            hint="Make the map from the image as it is.",
        )
    return sha256(content)


def _decode(path: Path, content: bytes) -> Image.Image:
    if not content.startswith(SIGNATURE) or len(content) < 33:
        raise DataError(f"the map {path} is no PNG.", hint="Maps are 8-bit grey PNGs.")
    bits, colour = content[24], content[25]
    if (colour, bits) != (0, 8):
        raise DataError(
            f"the map {path} is a {bits}-bit {COLOUR_TYPES.get(colour, 'unknown')} PNG; maps are 8-bit grey PNGs.",
            hint="Convert it, and keep its values.",
        )
    with as_data_error(_WHAT, path):
        found = Image.open(io.BytesIO(content), formats=("PNG",))
        found.load()
    return found
