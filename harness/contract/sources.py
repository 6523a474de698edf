"""Data sources under watch: who reads test images while a step is trained, and masks with other classes disguised.

Every source of the process is watched, whoever made it: a method that reads data behind the harness's back makes its
own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cispbench.harness.data.labels import relabel
from cispbench.harness.data.source import FolderSource
from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.splits.settings import VOID, Setting

SOURCES = (SyntheticSource, FolderSource)


class Lens:
    """What is seen of the data while a step is trained, and what was touched that no training may touch.

    ``disguised``: training masks lose what they say of classes other than the step's own.
    """

    def __init__(self, disguised: bool = False) -> None:
        self.disguised = disguised
        self.touched: list[str] = []
        self._training = False
        self._table: Tensor | None = None

    def start(self, setting: Setting, step: int) -> None:
        """Begin the training of a step."""
        self._training = True
        self._table = disguise(setting, step) if self.disguised else None

    def end(self) -> None:
        """End it: from here on test images may be read."""
        self._training, self._table = False, None

    def touch(self, action: str, split: str) -> None:
        """Note that something was done to a split."""
        if self._training and split != "train":
            self.touched.append(f"{action} {split!r}")

    def show(self, mask: Tensor) -> Tensor:
        """Return the mask as the training sees it."""
        return mask if self._table is None else relabel(mask, self._table)

    def taken_off(self) -> tuple[str, ...]:
        """Return what was touched since the last call, once each."""
        touched, self.touched = tuple(dict.fromkeys(self.touched)), []
        return touched


def disguise(setting: Setting, step: int) -> Tensor:
    """Return a table, uint8 (256,), of class numbers: the step's own stay, a third of the others turn to background.

    The rest of the others swap numbers in a ring, old and future ones alike; void stays void.
    """
    own = set(setting.steps[step].classes)
    others = [number for number in range(1, setting.num_foreground + 1) if number not in own]
    erased, ring = others[::3], [number for place, number in enumerate(others) if place % 3]
    table = list(range(VOID + 1))
    for number, other in (*((number, 0) for number in erased), *zip(ring, [*ring[1:], *ring[:1]], strict=True)):
        table[number] = other
    return torch.tensor(table, dtype=torch.uint8)


@contextmanager
def watched_sources(lens: Lens) -> Iterator[None]:
    """Let every source of this process be seen through the lens; one lens at a time, in one thread."""
    kept = {(source, name): getattr(source, name) for source in SOURCES for name in ("ids", "presence", "read")}
    try:
        for (source, name), original in kept.items():
            setattr(source, name, _watched(lens, name, original))
        yield
    finally:
        for (source, name), original in kept.items():
            setattr(source, name, original)


def _watched(lens: Lens, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def listed(source: Any, split: str) -> Any:
        lens.touch("listed", split)
        return original(source, split)

    def read(source: Any, split: str, image_id: str) -> tuple[Tensor, Tensor]:
        lens.touch(f"read {image_id} of", split)
        image, mask = original(source, split, image_id)
        return image, lens.show(mask) if split == "train" else mask

    return read if name == "read" else listed
