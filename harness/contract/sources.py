"""Data sources during a training: reads of test images are recorded, and labels of other classes can be scrambled.

The classes of the data sources are patched, not one source, because a method that reads data on its own makes a source
of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cispbench.harness.contract.recorded import RecordedStep, RecordedTraining
from cispbench.harness.data.labels import relabel
from cispbench.harness.data.source import FolderSource
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.method import Exemplar, Memory, StepContext
from cispbench.splits.settings import VOID, Setting

SOURCES = (SyntheticSource, FolderSource)


def scrambled_labels(setting: Setting, step: int, shown: Collection[int] = ()) -> Tensor:
    """Return a table, uint8 (256,), of class numbers: the step's own stay, a third of the others become background.

    The rest of the others swap numbers in a ring, old and future ones alike; void stays void. ``shown``: further
    classes that stay, because the step may see their labels.
    """
    own = {*setting.steps[step].classes, *shown}
    others = [number for number in range(1, setting.num_foreground + 1) if number not in own]
    erased, ring = others[::3], [number for index, number in enumerate(others) if index % 3]
    table = list(range(VOID + 1))
    for number, other in (*((number, 0) for number in erased), *zip(ring, [*ring[1:], *ring[:1]], strict=True)):
        table[number] = other
    return torch.tensor(table, dtype=torch.uint8)


def shown_labels(memory: Memory | None, chosen: Any, context: StepContext) -> dict[str, tuple[int, ...]]:
    """Return the old classes that the labels of each exemplar show, see ``Memory.labels``."""
    if memory is None or not isinstance(chosen, list) or not all(isinstance(one, Exemplar) for one in chosen):
        return {}  # the harness refuses it
    steps, found = context.setting.steps, {}
    for one in chosen:
        shown = {"step": (), "origin": steps[one.step : one.step + 1], "seen": steps[: context.step]}[memory.labels]
        found[one.id] = tuple(number for step in shown for number in step.classes)
    return found


@contextmanager
def monitored_sources(training: RecordedTraining, scramble: bool = False) -> Iterator[None]:
    """Record in ``training`` which test images are read or listed while one of its steps is trained.

    ``scramble``: training masks are then read with ``scrambled_labels``. One training at a time, in one thread.
    """
    originals = {(source, name): getattr(source, name) for source in SOURCES for name in ("ids", "presence", "read")}
    try:
        for (source, name), original in originals.items():
            setattr(source, name, _monitored(original, training, scramble))
        yield
    finally:
        for (source, name), original in originals.items():
            setattr(source, name, original)


def _monitored(original: Callable[..., Any], training: RecordedTraining, scramble: bool) -> Callable[..., Any]:
    def method(source: Any, split: str, *image_id: str) -> Any:
        # Only while a step is trained: between two steps the harness itself reads test images, to evaluate.
        step = training.steps[-1] if training.steps and not training.steps[-1].end else None
        if step is not None and split != "train":
            step.test_reads.append(f"read {image_id[0]} of {split!r}" if image_id else f"listed {split!r}")
        result = original(source, split, *image_id)
        if step is None or split != "train" or not image_id or not scramble:
            return result
        image, mask = result
        return image, relabel(mask, scrambled_labels(step.context.setting, step.context.step, _shown(step, *image_id)))

    return method


def _shown(step: RecordedStep, image_id: str) -> Collection[int]:
    """Return the old classes whose labels a memory may see on an image."""
    if step.selecting:  # its candidates are labelled as in the step before
        return step.context.setting.steps[step.context.step - 1].classes
    return step.shown.get(image_id, ())
