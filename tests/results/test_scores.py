"""Scores: recorded outputs of released code, a slow reference written with loops, and cases worked by hand."""

from __future__ import annotations

import dataclasses
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cispbench.results.protocols import Protocol, load_protocol, protocol_names
from cispbench.results.scores import score
from cispbench.splits.errors import SettingError, StoreError, UsageError
from cispbench.splits.settings import Setting, Step, parse_setting

Counts = NDArray[np.int64]


def small(dataset: str) -> Setting:
    steps = (Step(0, (2, 1)), Step(1, (3,)), Step(2, (4,)))
    return Setting("overlapped-2-1", dataset, "overlapped", "2-1", "x", steps)


@pytest.mark.golden
@pytest.mark.parametrize(("protocol", "recorded"), [("mbs24", "mbs"), ("mib20", "mib"), ("ssul21", "ssul")])
def test_mean_iou_is_that_of_the_released_code(golden: Path, protocol: str, recorded: str) -> None:
    metrics = np.load(golden / "metrics.npz")
    setting = Setting("overlapped-5-1", "voc", "overlapped", "5-1", "a", (Step(0, (1, 2, 3, 4, 5)), Step(1, (6,))))
    rules = dataclasses.replace(
        load_protocol(protocol), background_in_all=True
    )  # the released code's mean is over every row
    mean = 100 * float(metrics[f"{recorded}_mean_iou"])
    assert score(metrics["confusion"], setting, protocol=rules).all == pytest.approx(mean, rel=1e-5)


@pytest.mark.golden
def test_class_iou_and_accuracy_are_those_of_the_released_code(golden: Path) -> None:
    metrics = np.load(golden / "metrics.npz")
    setting = Setting("overlapped-5-1", "voc", "overlapped", "5-1", "a", (Step(0, (1, 2, 3, 4, 5)), Step(1, (6,))))
    for protocol, recorded in (("mbs24", "mbs"), ("mib20", "mib")):
        scores = score(metrics["confusion"], setting, protocol=protocol)
        assert scores.per_class == pytest.approx(tuple(100 * metrics[f"{recorded}_class_iou"]), rel=1e-5, nan_ok=True)
        assert scores.pixel_accuracy == pytest.approx(100 * float(metrics["overall_accuracy"]), rel=1e-5)


# Five classes: background, old 1 and 2, new 3 and 4. Class 2 is entirely forgotten, class 4 has no ground truth.
WORKED = np.array(
    [
        [60, 10, 0, 5, 5],
        [10, 30, 0, 0, 0],
        [20, 0, 0, 0, 0],
        [0, 10, 0, 20, 0],
        [0, 0, 0, 0, 0],
    ]
)
IOU = (60 / 110 * 100, 50.0, 0.0, 20 / 35 * 100)


@pytest.mark.parametrize(
    ("dataset", "protocol", "old", "new", "total"),
    [
        ("voc", "strict", 25.0, IOU[3], sum(IOU) / 4),
        ("voc", "mib20", 25.0, IOU[3], sum(IOU[1:]) / 3),
        ("voc", "plop21", sum(IOU[:3]) / 3, IOU[3], sum(IOU) / 4),
        ("voc", "ssul21", sum(IOU[:3]) / 3, IOU[3] / 2, sum(IOU) / 5),
        ("voc", "mbs24", 25.0, IOU[3] / 2, sum(IOU) / 3),
        # ADE20K without row 0: class 1 loses the 10 false positives from it, class 3 loses 5.
        ("ade", "strict", 30.0, 20 / 30 * 100, (60 + 0 + 20 / 30 * 100) / 3),
        ("ade", "mib20", 30.0, 20 / 30 * 100, (60 + 0 + 20 / 30 * 100) / 3),
        ("ade", "mbs24", 30.0, 10 / 30 * 100, (60 + 20 / 30 * 100) / 2),
        ("ade", "plop21", sum(IOU[:3]) / 3, IOU[3], sum(IOU) / 4),
        ("ade", "ssul21", sum(IOU[:3]) / 3, IOU[3] / 2, sum(IOU) / 5),
        ("voc", "dkd22", sum(IOU[:3]) / 3, IOU[3] / 2, sum(IOU) / 5),
        ("ade", "dkd22", sum(IOU[:3]) / 3, IOU[3] / 2, sum(IOU) / 5),
        # Class 4 is predicted without being there: it leaves the mean of the new classes, and counts in that of all.
        ("voc", "alife22", sum(IOU[:3]) / 3, IOU[3], sum(IOU) / 5),
        ("ade", "alife22", sum(IOU[:3]) / 3, IOU[3], sum(IOU) / 5),
    ],
)
def test_a_case_worked_by_hand(dataset: str, protocol: str, old: float, new: float, total: float) -> None:
    scores = score(WORKED, small(dataset), protocol=protocol)
    assert (scores.old, scores.new, scores.all) == pytest.approx((old, new, total))
    assert scores.harmonic == pytest.approx(2 * old * new / (old + new))
    assert (scores.protocol, scores.step) == (protocol, 2)


def test_background_and_absent_classes_by_hand() -> None:
    strict, zero = score(WORKED, small("voc")), score(WORKED, small("voc"), protocol="ssul21")
    assert strict.per_class == pytest.approx((*IOU, math.nan), nan_ok=True)
    assert zero.per_class == pytest.approx((*IOU, 0.0))
    assert strict.background == zero.background == pytest.approx(IOU[0])
    assert strict.pixel_accuracy == pytest.approx(100 * 110 / 170)
    ade = score(WORKED, small("ade"))
    assert math.isnan(ade.background)
    assert math.isnan(ade.per_class[0])
    assert ade.pixel_accuracy == pytest.approx(100 * 50 / 90)


def test_future_classes_by_hand() -> None:
    setting = small("voc")
    matrix = np.array([[50, 0, 0, 0, 0], [0, 40, 0, 0, 0], [0, 0, 40, 0, 0], [5, 0, 0, 15, 0], [20, 10, 0, 0, 0]])
    ignored = score(matrix, setting, step=1, protocol="strict")
    assert ignored.per_class == pytest.approx((5000 / 55, 100, 100, 75, math.nan), nan_ok=True)
    assert ignored.pixel_accuracy == pytest.approx(100 * 145 / 150)
    counted = score(matrix, setting, step=1, protocol="plop21")
    assert counted.per_class == pytest.approx((7000 / 85, 80, 100, 75, math.nan), nan_ok=True)
    assert counted.new == 75
    assert counted.pixel_accuracy == pytest.approx(100 * 165 / 180)
    removed = score(matrix, setting, step=1, protocol="mbs24")
    assert removed.per_class[:4] == pytest.approx(ignored.per_class[:4])


def test_future_classes_by_data_set_by_hand() -> None:
    # After step 1 (classes 1 to 3); class 4 is learnt later: 20 of its pixels are predicted 0, 10 predicted 1.
    matrix = np.array([[50, 0, 0, 0, 0], [0, 40, 0, 0, 0], [0, 0, 40, 0, 0], [5, 0, 0, 15, 0], [20, 10, 0, 0, 0]])
    voc = score(matrix, small("voc"), step=1, protocol="dkd22")
    assert voc.per_class == pytest.approx((7000 / 85, 80, 100, 75, math.nan), nan_ok=True)
    assert (voc.old, voc.new, voc.all) == pytest.approx(((7000 / 85 + 180) / 3, 75, (7000 / 85 + 255) / 4))
    # ADE20K: they are left out, and label 0 is scored as class 0.
    ade = score(matrix, small("ade"), step=1, protocol="dkd22")
    assert ade.per_class == pytest.approx((5000 / 55, 100, 100, 75, math.nan), nan_ok=True)
    assert (ade.old, ade.new, ade.all) == pytest.approx(((5000 / 55 + 200) / 3, 75, (5000 / 55 + 275) / 4))
    assert ade.harmonic == pytest.approx(2 * ade.old * 75 / (ade.old + 75))
    both = [score(matrix, small(dataset), step=1, protocol="alife22").per_class for dataset in ("voc", "ade")]
    assert both[0][:4] == both[1][:4] == pytest.approx(voc.per_class[:4])


def test_a_class_that_is_only_predicted_by_hand() -> None:
    # Class 3 has no ground truth and no prediction; class 4 has no ground truth, and two pixels predicted as it.
    matrix = np.diag([8, 6, 4, 0, 0])
    matrix[2, 4] = 2
    scores = {name: score(matrix, small("voc"), protocol=name) for name in ("alife22", "plop21", "ssul21")}
    third = 4 / 6 * 100
    assert {name: found.all for name, found in scores.items()} == pytest.approx(
        {"alife22": (200 + third) / 4, "plop21": (200 + third) / 3, "ssul21": (200 + third) / 5}
    )
    assert math.isnan(scores["alife22"].new)
    assert scores["alife22"].old == pytest.approx((200 + third) / 3)
    assert all(map(math.isnan, scores["alife22"].per_class[3:]))


def test_before_anything_new_is_learnt() -> None:
    scores = score(WORKED, small("voc"), step=0)
    assert scores.old == pytest.approx((30 / 50 * 100 + 0) / 2)
    assert math.isnan(scores.new)
    assert math.isnan(scores.harmonic)
    # The background loses the ten pixels given to classes not learnt yet, as any other error.
    assert scores.all == pytest.approx((60 / 110 * 100 + 60 + 0) / 3)


@pytest.mark.parametrize("protocol", protocol_names())
def test_perfect_and_empty_matrices(protocol: str) -> None:
    setting = parse_setting("overlapped-15-1")
    perfect = score(np.eye(21, dtype=np.int64) * 7, setting, protocol=protocol)
    assert (perfect.old, perfect.new, perfect.all, perfect.harmonic, perfect.pixel_accuracy) == (100,) * 5
    empty = score(np.zeros((21, 21), dtype=np.int64), setting, protocol=protocol)
    assert math.isnan(empty.pixel_accuracy)
    zero = load_protocol(protocol).absent == "zero"
    assert empty.old == 0 if zero else math.isnan(empty.old)
    assert score(np.eye(21, dtype=np.int64), setting, protocol=protocol).all == 100


def test_a_shuffled_order_counts_by_index() -> None:
    setting = parse_setting("overlapped-15-1-b")
    matrix = np.eye(21, dtype=np.int64) * 10
    matrix[20, 20], matrix[20, 0] = 0, 10  # the last class learnt: number 10
    scores = score(matrix, setting)
    assert (scores.old, scores.new) == (100, 80)
    assert scores.per_class[20] == 0


def test_wrong_matrices_and_names_are_errors() -> None:
    setting = small("voc")
    for matrix in (np.zeros((4, 4)), np.zeros((5, 4)), np.zeros(5), np.zeros((6, 6))):
        with pytest.raises(StoreError, match="5 x 5"):
            score(matrix, setting)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(StoreError, match="no counts"):
            score(np.full((5, 5), bad), setting)
    with pytest.raises(UsageError, match="'strict'"):
        score(WORKED, setting, protocol="stric")
    with pytest.raises(SettingError, match="no step 3"):
        score(WORKED, setting, step=3)


def test_the_matrix_is_left_as_it_was() -> None:
    matrix = WORKED.astype(np.float64)
    before = matrix.copy()
    score(matrix, small("ade"), step=1, protocol="plop21")
    assert np.array_equal(matrix, before)


def reference(matrix: Counts, setting: Setting, step: int, rules: Protocol) -> dict[str, float]:
    """Score pixel group by pixel group, with nothing but loops."""
    known, first = setting.num_classes(step), setting.num_classes(0)
    void = setting.dataset == "ade" and rules.void == "ignored"
    future = rules.future_on.get(setting.dataset, rules.future)
    pixels: list[tuple[int, int, int]] = []
    for truth, predicted in product(range(len(matrix)), repeat=2):
        label: int | None = truth
        if truth >= known:
            label = 0 if future == "background" else None
        elif truth == 0 and void:
            label = None
        if label is not None:
            pixels.append((label, predicted, int(matrix[truth, predicted])))
    iou: dict[int, float] = {}
    only_predicted: set[int] = set()
    for index in range(known):
        hits = misses = alarms = 0
        for label, predicted, count in pixels:
            if label == index and predicted == index:
                hits += count
            elif label == index:
                misses += count
            elif predicted == index:
                alarms += count
        if hits + misses == 0:
            if rules.absent == "zero":
                iou[index] = 0.0
            elif rules.absent == "zero if predicted" and alarms > 0:
                only_predicted.add(index)
        else:
            iou[index] = 100 * hits / (hits + misses + alarms)
    if void:
        iou.pop(0, None)
        only_predicted.discard(0)

    def mean(indices: range, drop: bool = False, zeros: frozenset[int] = frozenset()) -> float:
        counted = iou | dict.fromkeys(zeros, 0.0)
        values = [counted[index] for index in indices if index in counted and not (drop and counted[index] == 0)]
        return sum(values) / len(values) if values else math.nan

    right = sum(count for label, predicted, count in pixels if label == predicted)
    total = sum(count for _, _, count in pixels)
    return {
        "old": mean(range(0 if rules.background_in_old else 1, first)),
        "new": mean(range(first, known)),
        "all": mean(
            range(0 if rules.background_in_all else 1, known),
            drop=rules.forgotten == "dropped",
            zeros=frozenset(only_predicted),
        ),
        "background": iou.get(0, math.nan),
        "pixel_accuracy": 100 * right / total if total else math.nan,
        **{str(index): iou.get(index, math.nan) for index in range(len(matrix))},
    }


rules_strategy = st.builds(
    lambda absent, forgotten, in_old, in_all, future, void, on_ade: dataclasses.replace(
        load_protocol("strict"),
        absent=absent,
        forgotten=forgotten,
        background_in_old=in_old,
        background_in_all=in_all,
        future=future,
        void=void,
        future_on={} if on_ade is None else {"ade": on_ade},
    ),
    st.sampled_from(["dropped", "zero", "zero if predicted"]),
    st.sampled_from(["kept", "dropped"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["ignored", "background", "removed"]),
    st.sampled_from(["ignored", "class 0"]),
    st.sampled_from([None, "ignored", "background"]),
)
matrices = st.lists(st.integers(0, 3) | st.integers(0, 10**9), min_size=25, max_size=25)


@settings(max_examples=300)
@given(matrices, st.sampled_from(["voc", "ade"]), st.integers(0, 2), rules_strategy)
def test_scores_agree_with_a_slow_reference(values: list[int], dataset: str, step: int, rules: Protocol) -> None:
    matrix = np.array(values).reshape(5, 5)
    found = score(matrix, small(dataset), step, rules)
    expected = reference(matrix, small(dataset), step, rules)
    for name in ("old", "new", "all", "background", "pixel_accuracy"):
        assert getattr(found, name) == pytest.approx(expected[name], nan_ok=True), name
    assert found.per_class == pytest.approx(tuple(expected[str(index)] for index in range(5)), nan_ok=True)


@given(matrices, st.integers(1, 10**4))
def test_scores_do_not_depend_on_the_number_of_images(values: list[int], factor: int) -> None:
    matrix = np.array(values).reshape(5, 5)
    once, often = score(matrix, small("voc")), score(matrix * factor, small("voc"))
    assert (once.old, once.new, once.all) == pytest.approx((often.old, often.new, often.all), nan_ok=True)
