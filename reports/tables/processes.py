"""Work on many files in several processes, where there are cores for them and a process may safely be copied.

``ProcessPoolExecutor`` keeps the order and hands on the first error. It does not do the rest: when a worker is killed
it fails, at an error or Ctrl-C it waits for the work in progress, and forked workers outlive a parent that is killed
(each holds the pipe that would tell the others of its end). ``multiprocessing.Pool`` would wait forever for a killed
worker.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 16  # processes; with more of them, handing results over costs more than it saves
_SHARES = 4  # parts per process, as some files take longer than others


def in_order(work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], least: int) -> list[Result]:
    """Return ``work(items)``, done on parts of ``items`` in several processes if each has ``least`` items or more.

    The results are in the order of the items. An error is that of the first part that fails. ``work`` must treat items
    one by one and be picklable, and so must its results. Where processes cannot be started, or one is killed, this
    process does all the work itself: that takes longer, and less memory.
    """
    processes = min(_cores(), _MOST, len(items) // least)
    if processes < 2 or not _may_fork():
        return work(items)
    size = -(-len(items) // (processes * _SHARES))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    try:
        return _spread(work, parts, processes)
    except (OSError, ImportError, NotImplementedError, BrokenProcessPool):  # no semaphores, no free process, no memory
        return work(items)


def _spread(
    work: Callable[[Sequence[Item]], list[Result]], parts: Sequence[Sequence[Item]], processes: int
) -> list[Result]:
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _begin) as pool:
        try:
            # Not pool.map: at an error it cancels the other parts, and a pool whose workers are killed after that fails
            # in a thread of its own.
            futures = [pool.submit(work, part) for part in parts]
            return [result for future in futures for result in future.result()]
        except BaseException:
            # Otherwise the end of the with block would wait for the work in progress, after Ctrl-C as well.
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


def _begin() -> None:
    """Prepare a worker: it ignores Ctrl-C, which its parent handles, and ends when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_after_parent() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=end_after_parent, daemon=True).start()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def _may_fork() -> bool:
    """Say whether this process may be copied: a copy would wait forever for a lock that another thread holds."""
    # torch starts threads that Python does not count.
    return threading.active_count() == 1 and "torch" not in sys.modules
