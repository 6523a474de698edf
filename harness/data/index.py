"""Which classes each image holds, and the data set's fingerprint: read from all masks once, then from a cache."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from cispbench.harness.data.decode import (
    Pair,
    check_sizes,
    decode_mask,
    image_size,
    missing,
    read_image,
    read_regular_file,
)
from cispbench.results.atomic import make_folder, write_atomic
from cispbench.splits.errors import DataError

Progress = Callable[[int, int], None]
Pairs = Mapping[str, Mapping[str, Pair]]
Presence = Mapping[str, Mapping[str, frozenset[int]]]  # split -> image id -> class numbers
_FORMAT = 1
_CHUNK = 64  # masks a task of the thread pool: single ones would cost more to hand out than to read
_NAMED = 5  # files that an error names
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Index:
    """``fingerprint``: hexadecimal, equal for equal data anywhere. ``presence``: split -> id -> class numbers.

    ``path``: the cache file; ``cached``: whether it has served, so that no mask was read.
    """

    fingerprint: str
    presence: Presence
    path: Path = field(compare=False)
    cached: bool = field(compare=False)


@dataclass(frozen=True)
class _Stat:
    """One pair of files as the file system describes it; ``image_bytes`` is None where only masks are looked at."""

    split: str
    image_id: str
    pair: Pair
    mask_bytes: int
    mask_mtime_ns: int
    image_bytes: int | None


def build_index(
    dataset: str, pairs: Pairs, cache: Path, progress: Progress | None = None, masks_only: bool = False
) -> Index:
    """Return the index of the data set's ``pairs`` (split -> id -> files), from the cache if nothing has changed.

    All masks are read in parallel, and checked: colour mode, size against the image, values. ``progress`` is called
    with (done, total) from this thread. The cache file below ``cache/index`` is named after sizes and times of the
    files, never after paths, so a folder that moves keeps it. ``masks_only``: no image is looked at, and the
    fingerprint is another than the whole data's. Raises DataError naming up to five offending files, StoreError for a
    cache that cannot be written.
    """
    items = [(split, image_id, part[image_id]) for split, part in sorted(pairs.items()) for image_id in sorted(part)]
    stats = _without_errors(_parallel(partial(_stat, masks_only), items), len(items))
    path = cache / "index" / f"{_quick_key(dataset, stats)}.json"
    index = _load(path, dataset, pairs)
    if index is None:
        # First, so that a folder nobody may write to is known before minutes of reading.
        make_folder(path.parent)
        index = _read_all(dataset, stats, pairs, path, progress)
        record = {"format": _FORMAT, "dataset": dataset, "fingerprint": index.fingerprint, "presence": index.presence}
        # JSON has no sets: each becomes a sorted list.
        write_atomic(path, json.dumps(record, separators=(",", ":"), default=sorted).encode())
    return index


def find_broken(
    dataset: str, pairs: Pairs, progress: Progress | None = None, masks_only: bool = False
) -> list[DataError]:
    """Decode every image (unless ``masks_only``) and mask to its last pixel; return an error for each broken file."""

    # Both return nothing: thousands of decoded images would not fit into memory.
    def decode_image(path: Path) -> None:
        read_image(path)

    def decode_mask_at(path: Path) -> None:
        decode_mask(path, read_regular_file(path, "mask"), dataset)

    chosen = [pair for part in pairs.values() for pair in part.values()]
    tasks = [] if masks_only else [partial(decode_image, pair.image) for pair in chosen]
    tasks += [partial(decode_mask_at, pair.mask) for pair in chosen]
    results = _parallel(lambda task: task(), tasks, progress)
    return [result for result in results if isinstance(result, DataError)]


def _stat(masks_only: bool, item: tuple[str, str, Pair]) -> _Stat:
    split, image_id, pair = item
    what, path = "image", pair.image
    try:
        image_bytes = None if masks_only else path.stat().st_size
        what, path = "mask", pair.mask
        mask = path.stat()
    except FileNotFoundError as error:
        raise missing(what, path) from error
    except OSError as error:
        raise DataError(f"the {what} {path} cannot be looked at ({error}).", hint="Check its permissions.") from error
    return _Stat(split, image_id, pair, mask.st_size, mask.st_mtime_ns, image_bytes)


def _quick_key(dataset: str, stats: Iterable[_Stat]) -> str:
    lines = [f"{dataset} {_FORMAT}"]
    lines += [f"{s.split}\t{s.image_id}\t{s.mask_bytes}\t{s.mask_mtime_ns}\t{s.image_bytes}" for s in stats]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _read_all(dataset: str, stats: list[_Stat], pairs: Pairs, path: Path, progress: Progress | None) -> Index:
    def inspect(stat: _Stat) -> tuple[str, frozenset[int]]:
        content = read_regular_file(stat.pair.mask, "mask")
        mask, classes = decode_mask(stat.pair.mask, content, dataset)
        if stat.image_bytes is not None:
            check_sizes(stat.pair, image_size(stat.pair.image), (mask.height, mask.width))
        return hashlib.sha256(content).hexdigest(), classes

    found = _without_errors(_parallel(inspect, stats, progress), len(stats))
    presence: dict[str, dict[str, frozenset[int]]] = {split: {} for split in pairs}
    lines = [dataset]
    for stat, (digest, classes) in zip(stats, found, strict=True):
        lines.append(f"{stat.split}\t{stat.image_id}\t{digest}\t{stat.image_bytes}")
        presence[stat.split][stat.image_id] = classes
    return Index(hashlib.sha256("\n".join(lines).encode()).hexdigest(), presence, path, cached=False)


def _parallel(
    function: Callable[[_Item], _Result], items: list[_Item], progress: Progress | None = None
) -> Iterator[_Result | DataError]:
    """Yield the function's result, or the DataError it raised, item by item.

    Threads, because Pillow, SHA-256 and the disk release the interpreter's lock: as fast as processes, which would
    have to start and to send their results.
    """

    def work(chunk: list[_Item]) -> list[_Result | DataError]:
        results: list[_Result | DataError] = []
        for item in chunk:
            try:
                results.append(function(item))
            except DataError as error:
                results.append(error)
        return results

    # Results come in the order of the items, whatever thread is first: the fingerprint depends on it.
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    done = 0
    executor = ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1)))
    try:
        for results in executor.map(work, chunks):
            yield from results
            done += len(results)
            if progress is not None:
                progress(done, len(items))
    finally:
        # Ctrl-C must not wait for thousands of masks.
        executor.shutdown(wait=True, cancel_futures=True)


def _without_errors(results: Iterable[_Result | DataError], total: int) -> list[_Result]:
    found = list(results)
    errors = [result for result in found if isinstance(result, DataError)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        named = "".join(f"\n  {error.message}" for error in errors[:_NAMED])
        more = f"\n  and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
        raise DataError(f"{len(errors)} of {total} images or masks break a rule:{named}{more}\n", hint=errors[0].hint)
    return [result for result in found if not isinstance(result, DataError)]


def _load(path: Path, dataset: str, pairs: Pairs) -> Index | None:
    try:
        record = json.loads(path.read_bytes())
        fingerprint, stored = record["fingerprint"], record["presence"]
        if (record["format"], record["dataset"]) != (_FORMAT, dataset) or len(bytes.fromhex(fingerprint)) != 32:
            raise ValueError("its head is not what was written")
        if {split: set(part) for split, part in stored.items()} != {split: set(part) for split, part in pairs.items()}:
            raise ValueError("it lists other images")
        presence = {
            split: {image_id: frozenset(classes) for image_id, classes in part.items()}
            for split, part in stored.items()
        }
        if not all(
            isinstance(number, int) for part in presence.values() for found in part.values() for number in found
        ):
            raise ValueError("a class is no number")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"the index {path} is corrupt ({error}); it is made again from the masks.", stacklevel=3)
        return None
    return Index(fingerprint, presence, path, cached=True)
