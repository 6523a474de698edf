"""Which classes each image holds, and the data set's fingerprint: read from all files once, then kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cispbench.harness.data.decode import (
    Digests,
    Pair,
    check_image,
    check_sizes,
    decode_image,
    decode_mask,
    read_regular_file,
    sha256,
)
from cispbench.harness.data.index_file import (
    Entry,
    Pairs,
    Place,
    index_path,
    load_entries,
    save_entries,
    stamp_of,
)
from cispbench.harness.data.jpeg import without_end
from cispbench.harness.data.parallel import Progress, in_parallel, without_errors
from cispbench.results.atomic import make_folder
from cispbench.splits.errors import DataError

_WHAT = "images or masks"  # in errors
Presence = Mapping[str, Mapping[str, frozenset[int]]]  # split -> image id -> class numbers


@dataclass(frozen=True)
class Index:
    """``fingerprint``: hexadecimal, equal for equal data anywhere. ``presence``: split -> id -> class numbers.

    ``digests``: split -> id -> SHA-256 sums of the files. ``path``: the index file; ``cached``: whether it has served
    for all images, so that none was read. ``changed``: an error for each file whose content has changed while the file
    system describes it as before; looked for by ``verify`` alone.
    """

    fingerprint: str
    presence: Presence
    digests: Mapping[str, Mapping[str, Digests]]
    path: Path = field(compare=False)
    cached: bool = field(compare=False)
    changed: tuple[DataError, ...] = field(default=(), compare=False)

    def in_both_splits(self) -> list[tuple[str, str]]:
        """Return the ids of each training image whose content is a test image's, and of that one."""
        train, test = ({name: sums.image for name, sums in self.digests[split].items()} for split in ("train", "val"))
        by_content = {content: name for name, content in test.items() if content is not None}
        return [
            # The same id first: a test image may be there twice.
            (name, name if test.get(name) == content else by_content[content])
            for name, content in train.items()
            if content in by_content
        ]


def build_index(
    dataset: str, pairs: Pairs, cache: Path, progress: Progress | None = None,
    masks_only: bool = False, *, verify: bool = False,
) -> Index:  # fmt: skip
    """Return the index of the data set's ``pairs`` (split -> id -> files), from its file where nothing has changed.

    Images and masks that are new or have changed are read in parallel and checked; ``progress`` is called with
    (done, total) of them from this thread. The file below ``cache/index`` is named after the ids, never after paths,
    so a folder that moves keeps it. ``masks_only``: no image is looked at, and the fingerprint is another than the
    whole data's. ``verify``: all are read, and compared with the file. Raises DataError naming up to five offending
    files, StoreError for a file that cannot be written.
    """
    # In this order: the fingerprint depends on it.
    files = {(split, name): part[name] for split, part in sorted(pairs.items()) for name in sorted(part)}
    # Before the files are read: one that changes meanwhile is read again the next time.
    described = in_parallel(partial(stamp_of, masks_only=masks_only), list(files.values()))
    found = without_errors(described, len(files), _WHAT)
    stamps = dict(zip(files, found, strict=True))
    path = index_path(cache, dataset, pairs, masks_only)
    stored = load_entries(path, dataset)
    kept = {place: stored[place] for place in files if place in stored and stored[place].stamp == stamps[place]}
    unread = [place for place in files if verify or place not in kept]
    entries = dict(kept)
    if unread:
        # First, so that a folder nobody may write to is known before minutes of reading.
        make_folder(path.parent)
        read = in_parallel(lambda place: _read(dataset, files[place], stamps[place], masks_only), unread, progress)
        entries |= zip(unread, without_errors(read, len(unread), _WHAT), strict=True)
    if entries != stored:
        save_entries(path, dataset, entries)
    changed = [error for place, old in kept.items() for error in _changes(files[place], old, entries[place])]
    presence = {split: {name: entries[split, name].classes for name in sorted(part)} for split, part in pairs.items()}
    digests = {split: {name: entries[split, name].digests for name in sorted(part)} for split, part in pairs.items()}
    fingerprint = _fingerprint(dataset, {place: entries[place].digests for place in files})
    return Index(fingerprint, presence, digests, path, cached=not unread, changed=tuple(changed))


def find_broken(
    dataset: str, pairs: Pairs, progress: Progress | None = None, masks_only: bool = False
) -> list[DataError]:
    """Decode every image (unless ``masks_only``) and mask to its last pixel; return an error for each broken file."""

    # Both return nothing: thousands of decoded images would not fit into memory.
    def try_image(path: Path) -> None:
        content = read_regular_file(path, "image")
        check_image(path, content)
        decode_image(path, without_end(content))

    def try_mask(path: Path) -> None:
        decode_mask(path, read_regular_file(path, "mask"), dataset)

    chosen = [pair for part in pairs.values() for pair in part.values()]
    tasks = [] if masks_only else [partial(try_image, pair.image) for pair in chosen]
    tasks += [partial(try_mask, pair.mask) for pair in chosen]
    results = in_parallel(lambda task: task(), tasks, progress)
    return [result for result in results if isinstance(result, DataError)]


def _read(dataset: str, pair: Pair, stamp: str, masks_only: bool) -> Entry:
    content = read_regular_file(pair.mask, "mask")
    mask, classes = decode_mask(pair.mask, content, dataset)
    image_sum = None
    if not masks_only:
        image = read_regular_file(pair.image, "image")
        check_sizes(pair, check_image(pair.image, image), (mask.height, mask.width))
        image_sum = sha256(image)
    return Entry(stamp, Digests(image_sum, sha256(content)), classes)


def _changes(pair: Pair, old: Entry, new: Entry) -> Iterator[DataError]:
    for what, path, was, now in (
        ("image", pair.image, old.digests.image, new.digests.image),
        ("mask", pair.mask, old.digests.mask, new.digests.mask),
    ):
        if was != now:
            yield DataError(
                f"the {what} {path} holds other bytes than the index says, though nothing has written to it since.",
                hint="Is the disk broken? Get the file from the data set's archive again.",
            )


def _fingerprint(dataset: str, digests: Mapping[Place, Digests]) -> str:
    # As JSON, in which no id can look like two.
    lines = [[split, image_id, sums.image, sums.mask] for (split, image_id), sums in digests.items()]
    return sha256(json.dumps([dataset, *lines], separators=(",", ":")).encode())
