"""Read many files at once, and put what is wrong with them into one error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cispbench.splits.errors import DataError

Progress = Callable[[int, int], None]
_CHUNK = 64  # files a task of the thread pool: single ones would cost more to hand out than to read
_NAMED = 5  # files that an error names
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_parallel(
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
        # Ctrl-C must not wait for thousands of images.
        executor.shutdown(wait=True, cancel_futures=True)


def without_errors(results: Iterable[_Result | DataError], total: int, what: str) -> list[_Result]:
    """Return the results. Raises DataError naming up to five of the files that break a rule.

    ``total`` and ``what``: how many files of which kind were looked at.
    """
    found = list(results)
    errors = [result for result in found if isinstance(result, DataError)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        named = "".join(f"\n  {error.message}" for error in errors[:_NAMED])
        more = f"\n  and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
        raise DataError(f"{len(errors)} of {total} {what} break a rule:{named}{more}\n", hint=errors[0].hint)
    return [result for result in found if not isinstance(result, DataError)]
