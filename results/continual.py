"""Continual metrics of a run: forgetting and the like, from its scores after every step; in percent, NaN if undefined.

Forgetting, backward transfer and intransigence are means over classes: steps differ in how many they learn, and the
papers' means over tasks of equal size are the same. The background is left out of them, because what counts as
background changes with every step: it is neither learnt at one step nor forgotten as a class is. A class whose IoU is
NaN (no ground truth) is left out, too.

In the examples four classes are learnt: two at step 0, one at step 1, one at step 2. ``iou`` has a row a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cispbench.results.scores import Scores
from cispbench.splits.errors import StoreError
from cispbench.splits.settings import Setting

Rows = Sequence[Sequence[float]]
METRICS = ("average_over_steps", "forgetting", "backward_transfer", "intransigence", "harmonic")


@dataclass(frozen=True)
class Continual:
    """The continual metrics of a run, each defined by the function of its name; NaN where undefined or unknown."""

    average_over_steps: float
    forgetting: float
    backward_transfer: float
    intransigence: float
    harmonic: float


def continual_metrics(scores: Sequence[Scores], setting: Setting, joint: Sequence[float] | None = None) -> Continual:
    """Return the continual metrics of a run from its scores after every step, all under one protocol.

    ``joint``: IoU by class index, background first, of a joint run (``Scores.per_class``), None where there is none.
    Raises StoreError unless there is one entry a step, in order.
    """
    if [entry.step for entry in scores] != list(range(len(setting.steps))):
        raise StoreError(
            f"continual metrics of {setting.name} need its {len(setting.steps)} steps in order, not {len(scores)}.",
            hint="A run that goes on from an imported step has no record of the steps before it.",
        )
    # By foreground class in order of learning: its IoU after each step, and the step that learns it.
    iou = [entry.per_class[1:] for entry in scores]
    learnt = [step.index for step in setting.steps for _ in step.classes]
    return Continual(
        average_over_steps=average_over_steps([entry.all for entry in scores]),
        forgetting=forgetting(iou, learnt),
        backward_transfer=backward_transfer(iou, learnt),
        intransigence=intransigence(iou, learnt, None if joint is None else joint[1:]),
        harmonic=scores[-1].harmonic,
    )


def average_over_steps(totals: Sequence[float]) -> float:
    """Return the mean over all steps, step 0 included, of the mIoU ``all`` after each.

    With ``A_t`` the mIoU over the classes known after step t: ``(A_0 + ... + A_T) / (T + 1)``. The average incremental
    accuracy of iCaRL (Rebuffi et al., CVPR 2017), for segmentation the ``avg`` of PLOP (Douillard et al., CVPR 2021).
    NaN if one of them is.

    >>> average_over_steps([85.0, 63.5, 47.5])
    65.33333333333333
    """
    return _mean(totals) if not any(map(math.isnan, totals)) else math.nan


def forgetting(iou: Rows, learnt: Sequence[int]) -> float:
    """Return how far IoU has fallen from its best: mean over the classes learnt before the last step.

    With ``a_t,c`` the IoU of class c after step t and T the last step: the mean over c of
    ``max(a_t,c for t < T) - a_T,c``, the best among the steps since c was learnt. Negative where IoU has risen.
    The forgetting of Chaudhry et al. (RWalk, ECCV 2018), with classes for tasks. NaN if nothing is learnt before the
    last step.

    Below, the classes fall by 90 - 70, 80 - 40 and 50 - 60; the fourth is learnt last, and does not count.

    >>> nan = math.nan
    >>> iou = [[90, 80, nan, nan], [60, 80, 50, nan], [70, 40, 60, 20]]
    >>> round(forgetting(iou, learnt=[0, 0, 1, 2]), 2)  # (20 + 40 - 10) / 3
    16.67
    """
    last = len(iou) - 1
    falls = []
    for place, first in enumerate(learnt):
        earlier = [row[place] for row in iou[first:last] if not math.isnan(row[place])]
        if earlier:
            falls.append(max(earlier) - iou[last][place])
    return _mean(falls)


def backward_transfer(iou: Rows, learnt: Sequence[int]) -> float:
    """Return how later steps have changed IoU: mean over the classes learnt before the last step.

    With ``a_t,c`` the IoU of class c after step t, learnt at step s(c), and T the last step: the mean over c of
    ``a_T,c - a_s(c),c``. Negative where classes were forgotten; never below ``-forgetting``. Lopez-Paz and Ranzato
    (GEM, NeurIPS 2017), with classes for tasks. NaN if nothing is learnt before the last step.

    >>> nan = math.nan
    >>> iou = [[90, 80, nan, nan], [60, 80, 50, nan], [70, 40, 60, 20]]
    >>> round(backward_transfer(iou, learnt=[0, 0, 1, 2]), 2)  # (70 - 90 + 40 - 80 + 60 - 50) / 3
    -16.67
    """
    last = len(iou) - 1
    return _mean([iou[last][place] - iou[first][place] for place, first in enumerate(learnt) if first < last])


def intransigence(iou: Rows, learnt: Sequence[int], joint: Sequence[float] | None) -> float:
    """Return how far IoU is below that of joint training: mean over the classes of the last step.

    With ``a_T,c`` the IoU of class c after the last step T and ``j_c`` that of joint training on all classes: the mean
    over the classes that step T learns of ``j_c - a_T,c``. Chaudhry et al. (RWalk, ECCV 2018), for the last task:
    only there is joint training on all data seen so far the joint run, tested on the same classes.
    ``joint``: a value a class. NaN if it is None (no joint run), or after a single step.

    >>> nan = math.nan
    >>> iou = [[90, 80, nan, nan], [60, 80, 50, nan], [70, 40, 60, 20]]
    >>> intransigence(iou, [0, 0, 1, 2], joint=[88, 82, 75, 64])  # 64 - 20
    44.0
    >>> intransigence(iou, [0, 0, 1, 2], joint=None)
    nan
    """
    last = len(iou) - 1
    if joint is None or not last:
        return math.nan
    return _mean([joint[place] - iou[last][place] for place, first in enumerate(learnt) if first == last])


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return float(math.fsum(kept) / len(kept)) if kept else math.nan
