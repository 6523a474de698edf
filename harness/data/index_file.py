"""The file that keeps an index: what was read from a pair of files serves while the file system describes both as then.

A pair is described by size, time of the last write, time of the last change (ctime) and inode number. The ctime also
changes where somebody sets the other time back, and the inode number where two files change places: neither can be set
by hand. A copy of the data has new ones and is read once more, which costs seconds; the other way round, another
picture would be taken for the one that was read.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cispbench.harness.data.decode import Digests, Pair, missing, sha256
from cispbench.results.checked_json import read_checked, write_checked
from cispbench.splits.errors import DataError

FORMAT = 2  # raised whenever this file, or a rule that images and masks are checked by, changes
Pairs = Mapping[str, Mapping[str, Pair]]  # split -> image id -> files
Place = tuple[str, str]  # split and image id


@dataclass(frozen=True)
class Entry:
    """What was read from the two files of one image. ``stamp``: how the file system described them just before."""

    stamp: str
    digests: Digests
    classes: frozenset[int]


def stamp_of(pair: Pair, masks_only: bool) -> str:
    """Return how the file system describes a pair of files; ``masks_only``: the mask alone. Raises DataError."""
    image = "-" if masks_only else stamp_of_file("image", pair.image)
    return f"{image}/{stamp_of_file('mask', pair.mask)}"


def index_path(cache: Path, dataset: str, pairs: Pairs, masks_only: bool) -> Path:
    """Return the file of the index of these images: below ``cache/index``, the same wherever the images lie."""
    names = json.dumps([dataset, masks_only, {split: sorted(part) for split, part in pairs.items()}], sort_keys=True)
    return cache / "index" / f"{sha256(names.encode())}.json"


def load_entries(path: Path, dataset: str) -> dict[Place, Entry]:
    """Return the entries that a file keeps; none, with a warning, if it is damaged, and none of another format."""
    try:
        record = read_checked(path)
        if record["format"] != FORMAT or record["dataset"] != dataset:
            return {}
        return {(split, i): _parse(line) for split, lines in record["images"].items() for i, line in lines.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"the index {path} is damaged ({error}); all images and masks are read again.", stacklevel=3)
        return {}


def save_entries(path: Path, dataset: str, entries: Mapping[Place, Entry]) -> None:
    """Write the entries. Raises StoreError."""
    images: dict[str, dict[str, str]] = {}
    for (split, image_id), entry in entries.items():
        images.setdefault(split, {})[image_id] = _line(entry)
    write_checked(path, {"format": FORMAT, "dataset": dataset, "images": images})


# A line of text for each image: as nested JSON, the file of 12,031 images would have 100,000 lines.
def _line(entry: Entry) -> str:
    classes = ",".join(map(str, sorted(entry.classes)))
    return f"{entry.stamp} {entry.digests.image or '-'} {entry.digests.mask} {classes}"


def _parse(line: str) -> Entry:
    stamp, image, mask, classes = line.split(" ")
    numbers = frozenset(map(int, classes.split(","))) if classes else frozenset[int]()
    return Entry(stamp, Digests(None if image == "-" else image, mask), numbers)


def stamp_of_file(what: str, path: Path) -> str:
    """Return how the file system describes a file; ``what`` names it in errors. Raises DataError."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise missing(what, path) from error
    except OSError as error:
        raise DataError(f"the {what} {path} cannot be looked at ({error}).", hint="Check its permissions.") from error
    return f"{found.st_size}.{found.st_mtime_ns}.{found.st_ctime_ns}.{found.st_ino}"
