"""The means of DKD and ALIFE against the formulas of their released evaluation, on any confusion matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispbench.results.scores import score
from cispbench.splits.settings import Setting, Step

STEPS = (Step(0, (2, 1)), Step(1, (3,)), Step(2, (4,)))
counts = st.lists(st.sampled_from([0, 0, 1, 7]) | st.integers(0, 10**6), min_size=25, max_size=25)


def setting(dataset: str) -> Setting:
    return Setting("overlapped-2-1", dataset, "overlapped", "2-1", "x", STEPS)


def seen(values: list[int], step: int, future_is_background: bool) -> np.ndarray:
    """Return the matrix over the classes known after ``step``; nothing else is predicted, as by a real network."""
    matrix, known = np.array(values).reshape(5, 5), 3 + step
    matrix[:, known:] = 0
    small = matrix[:known, :known].copy()
    if future_is_background:
        small[0] += matrix[known:, :known].sum(axis=0)
    return small


def whole(values: list[int], step: int) -> np.ndarray:
    matrix = np.array(values).reshape(5, 5)
    matrix[:, 3 + step :] = 0
    return matrix


@given(counts, st.sampled_from(["voc", "ade"]), st.integers(0, 2))
def test_dkd(values: list[int], dataset: str, step: int) -> None:
    small = seen(values, step, future_is_background=dataset == "voc")
    union = small.sum(axis=0) + small.sum(axis=1) - np.diag(small)
    iou = [100 * hit / whole if whole else 0.0 for hit, whole in zip(np.diag(small), union, strict=True)]  # nan_to_num
    old, new = np.mean(iou[:3]), np.mean(iou[3:]) if step else math.nan
    found = score(whole(values, step), setting(dataset), step, "dkd22")
    assert (found.old, found.new, found.all) == pytest.approx((old, new, np.mean(iou)), nan_ok=True)
    if step and old + new:
        assert found.harmonic == pytest.approx(2 * old * new / (old + new))


@given(counts, st.sampled_from(["voc", "ade"]), st.integers(0, 2))
def test_alife(values: list[int], dataset: str, step: int) -> None:
    small = seen(values, step, future_is_background=True)
    truth, predicted = small.sum(axis=1), small.sum(axis=0)
    iou = np.full(len(small), np.nan)
    there = truth > 0
    iou[there] = 100 * np.diag(small)[there] / (truth + predicted - np.diag(small))[there]
    counted = ((truth > 0) | (predicted > 0)).sum()
    found = score(whole(values, step), setting(dataset), step, "alife22")
    assert found.all == pytest.approx(iou[there].sum() / counted if counted else math.nan, nan_ok=True)
    for name, part in (("old", iou[:3]), ("new", iou[3:])):
        kept = part[~np.isnan(part)]
        assert getattr(found, name) == pytest.approx(kept.mean() if kept.size else math.nan, nan_ok=True)
    assert found.per_class[: len(small)] == pytest.approx(tuple(iou), nan_ok=True)
