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
from typing import TypeVar

from cispbench.splits.errors import StoreError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 16  # processes; beyond, handing results over costs more than it saves
_SHARES = 4  # of each process, as some files take longer than others


def in_order(work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], least: int) -> list[Result]:
    """Return ``work(items)``, done on parts of ``items`` in several processes if each has ``least`` items or more.

    The results are in the order of the items, and an error is that of the first part that has one, as when done in
    one go. ``work`` must treat items one by one, be found by its name in a module, and return what can be pickled.
    Raises StoreError if a process was killed.
    """
    processes = min(_cores(), _MOST, len(items) // least)
    if processes < 2 or not _may_fork():
        return work(items)
    size = -(-len(items) // (processes * _SHARES))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    context = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(processes, context, _leave_interrupts) as pool:
            return [result for results in pool.map(work, parts) for result in results]
    except BrokenProcessPool as error:
        raise StoreError(
            "a process that reads records was killed, perhaps as memory ran out.", hint="Run the command again."
        ) from error


def _leave_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def _may_fork() -> bool:
    """Whether nothing else is at work in this process: a copy of it would wait for locks that other threads hold."""
    return threading.active_count() == 1 and "torch" not in sys.modules
