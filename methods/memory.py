"""How methods with a memory choose its images: in turns over the classes, as SSUL-M and DKD-M do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from cispbench.harness.machine.lazy import torch
from cispbench.harness.method import VOID, Batch, Exemplar

if TYPE_CHECKING:
    from torch import Tensor


def presence(target: Tensor, classes: int, background: int = 1) -> Tensor:
    """Return which classes each image shows, bool (n, ``classes``); column 0 is not meant to be read.

    ``target`` (n, H, W): column k tells whether the label k + ``background`` occurs; ``background`` is its own label, 1
    in SSUL's channels, else 0.
    """
    found = torch.zeros(target.shape[0], VOID + 1, dtype=torch.bool, device=target.device)
    return found.scatter_(1, target.flatten(1), True)[:, background : background + classes]


def list_candidates(
    kept: Sequence[Exemplar], images: Iterable[Batch], shown: Callable[[Batch], Tensor], step: int
) -> list[Exemplar]:
    """Return ``kept`` as it is, then an exemplar for each image of ``step``, with the classes that it shows.

    ``shown``: takes a batch and returns its ``presence``.
    """
    candidates = list(kept)
    for batch in images:
        for name, row in zip(batch.ids, shown(batch).tolist(), strict=True):
            classes = tuple(label for label, found in enumerate(row) if found and label > 0)
            candidates.append(Exemplar(name, step, classes))
    return candidates


def take_turns(label_sets: Sequence[Collection[int]], classes: Sequence[int], size: int) -> list[int]:
    """Choose up to ``size`` images: the classes take turns, and each takes the first free image that shows it.

    ``label_sets``: the classes that each image shows, in the order in which images are tried; ``classes``: in the
    order of their turns. Returns positions in ``label_sets``: those of the lowest class first, of one class in the
    order in which it took them. Ends early when no free image shows any class, where the released code of SSUL and
    DKD never ends. Source: clovaai/SSUL at e08ee9c, utils/memory.py; cvlab-yonsei/DKD at fb4693f, utils/memory.py.
    """
    showing = {label: _positions(label_sets, label) for label in classes}
    chosen: dict[int, list[int]] = {label: [] for label in sorted(classes)}
    taken: set[int] = set()
    waiting = list(classes)
    while waiting and len(taken) < size:
        for label in list(waiting):
            position = next((place for place in showing[label] if place not in taken), None)
            if position is None:
                waiting.remove(label)
            elif len(taken) < size:
                taken.add(position)
                chosen[label].append(position)
    return [position for positions in chosen.values() for position in positions]


def _positions(label_sets: Sequence[Collection[int]], label: int) -> Iterator[int]:
    return (position for position, labels in enumerate(label_sets) if label in labels)
