"""Make batches of samples, in this process or in workers; an error in a worker is raised here unchanged.

A worker that dies is another matter: torch finds that out in a signal handler and raises a RuntimeError wherever the
reader is at that moment. ``explaining_lost_workers`` goes around all that is done with a loader's batches.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cispbench.splits.errors import DataError, RunError

SIGNAL_SECONDS = 5.0

# An image, its labels (H, W), or (1 + K, H, W) with K companions after them, and what tells it from others.
Sample = tuple[Tensor, Tensor, Any]
Labelled = tuple[Tensor, Tensor, tuple[Any, ...]]


def batches_of(
    samples: Dataset[Sample],
    plan: Iterable[Any],
    stack: Callable[[list[Sample]], Any],
    workers: int,
    pin_memory: bool | None,
) -> Iterator[Any]:
    """Yield ``stack([samples[key], ...])`` for each list of keys in ``plan``, in its order.

    ``workers`` processes run ahead of the reader (0: none) and end with the iterator. ``pin_memory``: page-locked
    tensors; None means exactly where CUDA is available. Raises the DataError of a sample as it was raised.
    """
    loader: DataLoader[Any] = DataLoader(
        _Batches(samples, stack),
        # An item of the data set is a whole batch already: torch neither groups nor stacks anything.
        batch_size=None,
        sampler=plan,
        collate_fn=_unchanged,
        num_workers=workers,
        worker_init_fn=_ignore_interrupts,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        # Its own generator: without one, every pass would draw from torch's global stream.
        generator=torch.Generator(),
    )
    # Only the loop holds the iterator, so that its end, by an error too, ends the workers at once. If the garbage
    # collector did it later, torch would wait five seconds for each worker.
    try:
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except (OSError, EOFError):
        # A worker may have died with a batch on its way; torch's handler then says so as soon as the signal is here.
        if workers:
            time.sleep(SIGNAL_SECONDS)
        raise


def stack(samples: list[Sample]) -> Labelled:
    """Stack samples of one size: uint8 (B, 3, H, W), uint8 (B, H, W), or (1 + K, B, H, W) with companions, names.

    The images are in the memory format of channels_last, as they were decoded.
    """
    images, targets, names = zip(*samples, strict=True)
    pixels = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return pixels, torch.stack(targets, dim=targets[0].ndim - 2), names


def stack_by_size(samples: list[Sample]) -> list[Labelled]:
    """Stack neighbours of the same size, in order."""
    return [stack(list(group)) for _, group in groupby(samples, key=lambda sample: sample[0].shape)]


@contextmanager
def explaining_lost_workers() -> Iterator[None]:
    """Raise a RunError for a worker that has died: which process, by which signal, and what to do."""
    lost = None
    try:
        yield
    except RuntimeError as error:
        lost = _lost_worker(error)
        if lost is None:
            raise
    # Outside of the handler: the error holds the loader's iterator, and with it the workers that still live.
    if lost is not None:
        raise RunError(
            f"a process that loads images {lost}; the memory may be used up.",
            hint="The same command goes on from the last checkpoint. Use fewer such processes (--workers), or look for "
            "what ended it.",
        )


def _lost_worker(error: BaseException | None) -> str | None:
    """Return what is known of the worker that an error tells of, None if it tells of none."""
    found = None
    while error is not None:  # the first error of the chain is the one that names the signal
        told = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", str(error))
        if told:
            killed = re.search(r"killed by signal: ([^.]+)", told[2])
            code = re.search(r"exit code (\d+)", told[2])
            how = f"was killed by {_signal_name(killed[1])}" if killed else "has ended"
            found = f"(pid {told[1]}) {how}" + (f" with exit code {code[1]}" if code else "")
        error = error.__cause__ or error.__context__
    return found


def _signal_name(words: str) -> str:
    """Return ``SIGKILL`` for the C library's ``Killed``; unknown words as they are."""
    return next((one.name for one in signal.Signals if signal.strsignal(one) == words), f"the signal {words}")


class _Batches(Dataset[Any]):
    """Batches by lists of keys, made where the samples are read: in a worker, if there are any."""

    def __init__(self, samples: Dataset[Sample], stack: Callable[[list[Sample]], Any]) -> None:
        self._samples, self._stack = samples, stack

    def __getitem__(self, keys: list[Any]) -> Any:
        try:
            return self._stack([self._samples[key] for key in keys])
        # Returned, not raised: torch would replace a worker's error by one with the traceback as its message.
        except DataError as error:
            return error


def _unchanged(batch: Any) -> Any:
    return batch


def _ignore_interrupts(worker: int) -> None:
    # Ctrl-C reaches all processes of a terminal: the workers ignore it, and the reader ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _print_unless_disconnected


def _print_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback, but not of the thread that sends tensors when the reader has closed its connection."""
    if threading.current_thread() is threading.main_thread() or not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)
