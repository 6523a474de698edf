"""Continual metrics: a case worked by hand, a slow reference written with loops, and what must hold of any run."""

from __future__ import annotations

import doctest
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispbench.results import continual
from cispbench.results import scores as scores_module
from cispbench.results.continual import METRICS, Continual, continual_metrics
from cispbench.results.protocols import protocol_names
from cispbench.results.scores import score
from cispbench.splits.errors import StoreError, UsageError
from cispbench.splits.settings import Setting, Step, parse_setting

SETTING = Setting("overlapped-2-1", "voc", "overlapped", "2-1", "x", (Step(0, (2, 1)), Step(1, (3,)), Step(2, (4,))))
LEARNT = (0, 0, 1, 2)
Counts = list[list[int]]


def counts(*right: int) -> Counts:
    """Ten pixels of each of four classes, so many of them right and the others taken for background."""
    rows = [[60, 0, 0, 0, 0], *([10, 0, 0, 0, 0] for _ in range(4))]
    for index, number in enumerate(right, start=1):
        rows[index][0], rows[index][index] = 10 - number, number
    return rows


def metrics_of(run: Sequence[Any], setting: Setting, protocol: str = "strict", joint: Any = None) -> Continual:
    """Return the metrics of a run, given by its confusion matrices; one after the last step counts as of that step."""
    scores = [score(matrix, setting, min(step, setting.last_step), protocol) for step, matrix in enumerate(run)]
    return continual_metrics(
        scores, setting, None if joint is None else score(joint, setting, None, protocol).per_class
    )


RUN = [counts(9, 8), counts(6, 8, 5), counts(7, 4, 6, 2)]
JOINT = counts(9, 9, 8, 7)


def test_the_examples_of_the_docstrings_hold() -> None:
    found = doctest.testmod(continual)
    assert found.attempted >= 9
    assert found.failed == 0
    assert doctest.testmod(scores_module) == (0, 1)


def test_a_case_worked_by_hand() -> None:
    found = metrics_of(RUN, SETTING, "mib20", JOINT)
    assert found.average_over_steps == pytest.approx(((90 + 80) / 2 + (60 + 80 + 50) / 3 + (70 + 40 + 60 + 20) / 4) / 3)
    assert found.forgetting == pytest.approx((90 - 70 + 80 - 40 + 50 - 60) / 3)
    assert found.backward_transfer == pytest.approx((70 - 90 + 40 - 80 + 60 - 50) / 3)
    assert found.intransigence == pytest.approx(70 - 20)
    assert found.harmonic == pytest.approx(2 * 55 * 40 / 95)


def test_the_best_step_counts_for_forgetting_and_the_first_for_backward_transfer() -> None:
    run = [counts(5, 5), counts(9, 5, 5), counts(7, 5, 5, 5)]
    found = metrics_of(run, SETTING, "mib20")
    assert found.forgetting == pytest.approx(20 / 3)
    assert found.backward_transfer == pytest.approx(20 / 3)


def test_nothing_is_invented() -> None:
    assert math.isnan(metrics_of(RUN, SETTING).intransigence)
    for steps in (RUN[:2], RUN[1:], [], [*RUN, RUN[2]]):
        with pytest.raises(StoreError, match="3 steps"):
            metrics_of(steps, SETTING)
    scores = [score(matrix, SETTING, step) for step, matrix in enumerate(RUN)]
    with pytest.raises(StoreError, match="in order"):
        continual_metrics(scores[::-1], SETTING)
    with pytest.raises(UsageError, match="'strict'"):
        metrics_of(RUN, SETTING, "strct")


def test_one_step_forgets_nothing_and_transfers_nothing() -> None:
    found = metrics_of([JOINT], SETTING.joint(), "mib20", JOINT)
    assert found.average_over_steps == pytest.approx((90 + 90 + 80 + 70) / 4)
    assert all(math.isnan(getattr(found, name)) for name in METRICS[1:])


def test_a_class_without_ground_truth_leaves_the_means() -> None:
    run = [[list(row) for row in matrix] for matrix in RUN]
    for matrix in run:
        matrix[2] = [0] * 5
    found = metrics_of(run, SETTING, "mib20", JOINT)
    assert found.forgetting == pytest.approx((20 - 10) / 2)
    assert found.backward_transfer == pytest.approx((-20 + 10) / 2)
    assert found.intransigence == pytest.approx(50)
    alone = [[list(row) for row in matrix] for matrix in RUN]
    for matrix in alone:
        matrix[4] = [0] * 5
    assert math.isnan(metrics_of(alone, SETTING, "mib20", JOINT).intransigence)


def test_the_order_of_learning_decides_when_a_class_is_learnt() -> None:
    setting = parse_setting("overlapped-15-1-b")
    first = [[0] * 21 for _ in range(21)]
    for index in range(21):
        first[index][index] = 10
    last = [list(row) for row in first]
    last[16][16], last[16][0] = 5, 5  # the class learnt at step 1, whatever its number
    found = metrics_of([first] * 5 + [last], setting, "mib20")
    assert found.forgetting == pytest.approx(50 / 19)


def reference(run: list[Counts], joint: Counts, protocol: str) -> dict[str, float]:
    """The same by loops, from the scores of each step."""
    scores = [score(matrix, SETTING, step, protocol) for step, matrix in enumerate(run)]
    best = score(joint, SETTING, None, protocol)

    def mean(values: list[float]) -> float:
        known = [value for value in values if value == value]
        return sum(known) / len(known) if known else math.nan

    falls, changes, misses = [], [], []
    for index in range(1, 5):
        step = LEARNT[index - 1]
        final = scores[2].per_class[index]
        if step == 2:
            misses.append(best.per_class[index] - final)
            continue
        highest = -math.inf
        for earlier in range(step, 2):
            value = scores[earlier].per_class[index]
            if value == value and value > highest:
                highest = value
        if highest > -math.inf:
            falls.append(highest - final)
        changes.append(final - scores[step].per_class[index])
    totals = [entry.all for entry in scores]
    return {
        "average_over_steps": sum(totals) / 3,
        "forgetting": mean(falls),
        "backward_transfer": mean(changes),
        "intransigence": mean(misses),
        "harmonic": scores[2].harmonic,
    }


matrices = st.lists(st.lists(st.integers(0, 3) | st.integers(0, 10**6), min_size=5, max_size=5), min_size=5, max_size=5)
runs = st.lists(matrices, min_size=3, max_size=3)


@given(runs, matrices, st.sampled_from(protocol_names()))
def test_metrics_agree_with_a_slow_reference(run: list[Counts], joint: Counts, protocol: str) -> None:
    found = metrics_of(run, SETTING, protocol, joint)
    for name, value in reference(run, joint, protocol).items():
        assert getattr(found, name) == pytest.approx(value, nan_ok=True, abs=1e-9), name


@given(st.lists(st.tuples(*[st.integers(0, 10)] * 4), min_size=3, max_size=3))
def test_what_holds_of_any_run(right: list[tuple[int, ...]]) -> None:
    run = [counts(*numbers[: 2 + step]) for step, numbers in enumerate(right)]
    found = metrics_of(run, SETTING, "mib20", run[2])
    assert found.backward_transfer >= -found.forgetting - 1e-9
    assert -100 <= found.forgetting <= 100
    assert found.intransigence == pytest.approx(0)  # against itself
    assert 0 <= found.harmonic <= 100
    scores = score(run[2], SETTING, protocol="mib20")
    assert min(scores.old, scores.new) - 1e-9 <= found.harmonic <= (scores.old + scores.new) / 2 + 1e-9


@given(st.lists(st.integers(0, 10), min_size=4, max_size=4))
def test_a_run_that_keeps_all_it_learns_forgets_nothing(right: list[int]) -> None:
    found = metrics_of([counts(*right[: 2 + step]) for step in range(3)], SETTING, "mib20")
    assert (found.forgetting, found.backward_transfer) == (0, 0)


@given(runs, st.integers(1, 1000))
def test_metrics_do_not_depend_on_the_number_of_images(run: list[Counts], factor: int) -> None:
    many = [np.array(matrix) * factor for matrix in run]
    once, often = metrics_of(run, SETTING), metrics_of(many, SETTING)
    for name in METRICS:
        assert getattr(once, name) == pytest.approx(getattr(often, name), nan_ok=True, abs=1e-9)


def test_the_names_are_those_of_the_fields() -> None:
    assert tuple(Continual.__dataclass_fields__) == METRICS
