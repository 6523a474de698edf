"""SSUL: Semantic Segmentation with Unknown Label (Cha et al., NeurIPS 2021), and SSUL-M, which keeps exemplars.

Released code: github.com/clovaai/SSUL at e08ee9c.

The network has one channel more than classes. In *channels*: 0 unknown, 1 background, k + 1 class k; 255 is void. The
unknown channel learns what is no class yet, and a new class starts from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cispbench.harness.machine.lazy import torch
from cispbench.methods.losses import VOID
from cispbench.methods.memory import take_turns

if TYPE_CHECKING:
    from torch import Tensor


def with_unknown(target: Tensor, unknown: Tensor) -> Tensor:
    """Return the labels in channels: background that is ``unknown`` becomes 0, other background 1, class k k + 1.

    ``target``: int64 of any shape, in the order of learning, void (255) kept. ``unknown``: bool of that shape, read
    on background alone. Source: clovaai/SSUL, datasets/voc.py, __getitem__.
    """
    channels = torch.where(target == VOID, VOID, target + 1)
    return channels.masked_fill((target == 0) & unknown, 0)


def pseudo_labels(target: Tensor, old_logits: Tensor, threshold: float = 0.7, background: int = 1) -> Tensor:
    """Label pixels of no class where the previous model is sure of an old class.

    ``target`` (B, H, W) in channels, ``old_logits`` (B, O + 1, H, W). A pixel up to ``background``, the highest
    channel that is no class (0 where there is no unknown channel), takes the channel of the largest sigmoid if that
    is a class and its probability reaches ``threshold``. Source: clovaai/SSUL, main.py, train.
    """
    probability, channel = old_logits.float().sigmoid().max(1)
    sure = (target <= background) & (channel > background) & (probability >= threshold)
    return torch.where(sure, channel, target)


def class_scores(logits: Tensor) -> Tensor:
    """Return the classes' scores (B, C, H, W) from ``logits`` (B, C + 1, H, W): background gets unknown's, too.

    The sum of the two probabilities may exceed 1; a class wins only where it is above the sum.
    Source: clovaai/SSUL, main.py, validate.
    """
    scores = logits.float().sigmoid()
    return torch.cat([scores[:, :1] + scores[:, 1:2], scores[:, 2:]], 1)


def prediction(logits: Tensor) -> Tensor:
    """Return the predicted classes (B, H, W), 0 background, from ``logits`` (B, C + 1, H, W)."""
    return class_scores(logits).argmax(1)


def presence(target: Tensor, classes: int) -> Tensor:
    """Return which classes each image shows, bool (n, ``classes``); column 0 is not meant to be read.

    ``target`` (n, H, W) in channels, with its pseudo-labels: column k tells whether channel k + 1 occurs.
    """
    found = torch.zeros(target.shape[0], VOID + 1, dtype=torch.bool, device=target.device)
    return found.scatter_(1, target.flatten(1), True)[:, 1 : classes + 1]


def random_orders(candidates: Sequence[int], old_classes: int) -> tuple[list[int], list[int]]:
    """Return the candidates and the old classes without background, both shuffled by NumPy's generator of seed 1.

    The released code sets this seed before every step, so that the choice depends on the candidates alone. Source:
    clovaai/SSUL, main.py, main and utils/memory.py.
    """
    random = np.random.RandomState(1)
    tried, turns = list(candidates), list(range(1, old_classes))
    random.shuffle(tried)
    random.shuffle(turns)
    return tried, turns


def select_exemplars(presence: Tensor, order: Sequence[int], class_order: Sequence[int], size: int) -> list[int]:
    """Choose up to ``size`` images that show all old classes about equally often.

    ``presence``: bool (n, O); ``order``: rows of it, the candidates in the order in which they are tried;
    ``class_order``: the old classes without background. Returns rows, grouped by class. See ``take_turns``.
    """
    rows = presence[list(order)].tolist()
    label_sets = [{label for label, shown in enumerate(row) if shown} for row in rows]
    return [order[position] for position in take_turns(label_sets, class_order, size)]
