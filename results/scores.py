"""Scores as pure functions of a confusion matrix, a setting and a protocol; percent, NaN where undefined."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cispbench.results.protocols import Protocol, load_protocol
from cispbench.splits.datasets import dataset
from cispbench.splits.errors import StoreError
from cispbench.splits.settings import Setting

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What a protocol makes of the predictions after ``step``, in percent; NaN where there is nothing to score.

    ``old``: mean IoU of step 0's classes, ``new``: of those of all later steps (NaN at step 0), ``all``: of both.
    ``per_class``: IoU by class index over all classes of the data set, background first; NaN for a class dropped or
    not learnt yet. ``background``: its IoU. ``harmonic``: harmonic mean of old and new. ``pixel_accuracy``: share of
    the counted pixels that are right.
    """

    protocol: str
    step: int
    old: float
    new: float
    all: float
    per_class: tuple[float, ...]
    background: float
    harmonic: float
    pixel_accuracy: float


def score(
    confusion: ArrayLike, setting: Setting, step: int | None = None, protocol: str | Protocol = "strict"
) -> Scores:
    """Score a confusion matrix as it stands after ``step`` (default: the last) under a protocol.

    ``confusion``: (C, C) counts over all C classes of the data set, background included, by class index, rows ground
    truth. Rows of classes not learnt yet are left out (``future`` ignored or removed, which is the same once pixels
    are counted) or counted as ground truth of the background; columns of such classes count as errors. On ADE20K
    row 0 holds label 0, no class: a protocol that ignores it leaves the row out and scores no background.
    For a joint run pass the setting itself, not ``setting.joint()``: its steps say which classes are old and new.
    Raises StoreError on a wrong shape or negative counts, UsageError on an unknown protocol, SettingError on a step.
    """
    rules = load_protocol(protocol) if isinstance(protocol, str) else protocol
    step = setting.last_step if step is None else step
    known, first = setting.num_classes(step), setting.num_classes(0)
    counts = _counted(_as_counts(confusion, 1 + setting.num_foreground), setting, known, rules)
    iou = _iou(counts, rules)
    scored = np.arange(len(iou)) < known
    scored[0] = not _row_zero_is_void(setting, rules)
    iou[~scored] = math.nan
    old = _mean(iou[0 if rules.background_in_old else 1 : first])
    new = _mean(iou[first:known])
    counted = _counted_in_all(iou, counts, scored, rules)[0 if rules.background_in_all else 1 :]
    if rules.forgotten == "dropped":
        counted = counted[counted != 0]
    total = float(counts.sum())
    return Scores(
        protocol=rules.name,
        step=step,
        old=old,
        new=new,
        all=_mean(counted),
        per_class=tuple(iou.tolist()),
        background=float(iou[0]),
        harmonic=harmonic_mean(old, new),
        pixel_accuracy=100 * float(np.trace(counts)) / total if total else math.nan,
    )


def harmonic_mean(old: float, new: float) -> float:
    """Return ``2 * old * new / (old + new)``, 0 if both are 0: low where either is low. NaN if either is NaN.

    Used for seen and unseen classes by Xian et al. (CVPR 2017).

    >>> harmonic_mean(60.0, 30.0)  # 3600 / 90
    40.0
    """
    return 0.0 if old + new == 0 else 2 * old * new / (old + new)


def _as_counts(confusion: ArrayLike, count: int) -> Floats:
    """Return a copy of the matrix as float64, exact for counts below 2 ** 53. Raises StoreError."""
    counts: NDArray[Any] = np.asarray(confusion)
    if counts.shape != (count, count):
        wanted = f"{count} x {count}, all classes of the data set and background"
        raise StoreError(f"the confusion matrix has shape {counts.shape}, not {wanted}.")
    kind = counts.dtype.kind
    if kind not in "iuf" or (kind == "f" and not np.isfinite(counts).all()) or (counts < 0).any():
        raise StoreError(f"the confusion matrix (of type {counts.dtype}) holds entries that are no counts.")
    return np.array(counts, dtype=np.float64)


def _row_zero_is_void(setting: Setting, rules: Protocol) -> bool:
    return rules.void == "ignored" and dataset(setting.dataset).zero_is_void


def _counted(counts: Floats, setting: Setting, known: int, rules: Protocol) -> Floats:
    """Empty the rows that the protocol leaves out, or move them to the background, in place."""
    if _row_zero_is_void(setting, rules):
        counts[0] = 0
    if rules.future_on.get(setting.dataset, rules.future) == "background":
        counts[0] += counts[known:].sum(axis=0)
    counts[known:] = 0
    return counts


def _iou(counts: Floats, rules: Protocol) -> Floats:
    """Return TP / (TP + FP + FN) of every class in percent; without ground truth NaN or 0, as ``absent`` says."""
    truth, right = counts.sum(axis=1), counts.diagonal()
    union = truth + counts.sum(axis=0) - right
    # A class that is neither there nor predicted has no union; it counts as 0 until ``absent`` decides.
    iou: Floats = np.divide(100 * right, union, out=np.zeros_like(union), where=union > 0)
    if rules.absent != "zero":
        iou[truth == 0] = math.nan
    return iou


def _counted_in_all(iou: Floats, counts: Floats, scored: NDArray[np.bool_], rules: Protocol) -> Floats:
    """Return the IoU that the mean ``all`` is of: where ``absent`` says so, 0 for a class that is only predicted.

    The sum over the classes with ground truth, divided by the number of those with ground truth or prediction, is
    this mean: ALIFE at 0e39e6f, utils/sem_seg_evaluation.py, ``SemSegEvaluator.evaluate``.
    """
    if rules.absent != "zero if predicted":
        return iou
    only_predicted = scored & (counts.sum(axis=1) == 0) & (counts.sum(axis=0) > 0)
    return np.where(only_predicted, 0.0, iou)


def _mean(iou: Floats) -> float:
    kept = iou[~np.isnan(iou)]
    return float(kept.sum()) / kept.size if kept.size else math.nan
