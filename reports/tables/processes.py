"""Work on many files in several processes, where there are cores for them and a process may safely be copied."""

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

_MOST = 16  # processes; beyond, handing results over costs more than it saves
_SHARES = 4  # of each process, as some files take longer than others


def in_order(work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], least: int) -> list[Result]:
    """Return ``work(items)``, done on parts of ``items`` in several processes if each has ``least`` items or more.

    The results are in the order of the items, and an error is that of the first part that has one. ``work`` must treat
    items one by one, be found by its name in a module, and return what can be pickled. Where processes cannot be
    started, or one is killed, this one does all of it: that takes longer, and less memory.
    """
    processes = min(_cores(), _MOST, len(items) // least)
    if processes < 2 or not _may_fork():
        return work(items)
    size = -(-len(items) // (processes * _SHARES))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    try:
        return _spread(work, parts, processes)
    except (OSError, ImportError, NotImplementedError, BrokenProcessPool):  # no semaphores, no process left, no memory
        return work(items)


def _spread(
    work: Callable[[Sequence[Item]], list[Result]], parts: Sequence[Sequence[Item]], processes: int
) -> list[Result]:
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _begin) as pool:
        try:
            futures = [pool.submit(work, part) for part in parts]
            return [result for future in futures for result in future.result()]
        except BaseException:  # else the pool would wait for what is under way, at Ctrl-C as well
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


def _begin() -> None:
    """Leave Ctrl-C, which reaches all processes of a terminal, to the first one, and end when that one does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def _may_fork() -> bool:
    """Whether nothing else is at work in this process: a copy of it would wait for locks that other threads hold."""
    return threading.active_count() == 1 and "torch" not in sys.modules
