"""Labels by table: equal to the obvious loop, strict about values, fast."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cispbench.harness.data.labels import ILLEGAL_LABEL, relabel, to_table
from cispbench.splits.errors import DataError
from cispbench.splits.settings import parse_setting

VOC_TABLE = parse_setting("overlapped-15-1").label_table(1)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_equals_a_loop_over_pixels(data: st.DataObject) -> None:
    table = data.draw(st.lists(st.integers(0, 253) | st.just(255), min_size=256, max_size=256))
    height, width = data.draw(st.integers(0, 7)), data.draw(st.integers(1, 7))
    values = data.draw(st.lists(st.integers(0, 255), min_size=height * width, max_size=height * width))
    mask = torch.tensor(values, dtype=torch.uint8).view(height, width)
    labels = relabel(mask, to_table(torch.tensor(table)))
    assert labels.dtype == torch.uint8 and labels.shape == mask.shape
    assert labels.flatten().tolist() == [table[value] for value in values]


def test_training_labels_of_a_step() -> None:
    mask = torch.tensor([[0, 5, 16, 17, 20, 255]], dtype=torch.uint8)
    assert relabel(mask, to_table(VOC_TABLE)).tolist() == [[0, 0, 16, 0, 0, 255]]


def test_void_can_become_background_without_touching_the_given_table() -> None:
    table = to_table(VOC_TABLE)
    mask = torch.tensor([[255, 16]], dtype=torch.uint8)
    assert relabel(mask, to_table(table, void="background")).tolist() == [[0, 16]]
    assert relabel(mask, table).tolist() == [[255, 16]]


@pytest.mark.parametrize("table", [torch.tensor(VOC_TABLE), to_table(VOC_TABLE)])
def test_value_without_a_label_is_an_error(table: torch.Tensor) -> None:
    mask = torch.zeros(4, 5, dtype=torch.uint8)
    mask[3, 2] = 77
    with pytest.raises(DataError, match="value 77") as caught:
        relabel(mask, to_table(table))
    assert caught.value.hint
    with pytest.raises(DataError, match="the mask of x holds the value 77"):
        relabel(mask, to_table(table), place="the mask of x")


def test_other_memory_layouts_and_shapes() -> None:
    mask = torch.arange(20, dtype=torch.uint8).view(4, 5)
    table = to_table(VOC_TABLE)
    for view in (mask.t(), mask[:, 1:4], mask.flip(1), mask[None], mask[:0]):
        assert relabel(view, table).tolist() == [VOC_TABLE[v] for v in view.flatten().tolist()] or view.ndim > 1
        assert torch.equal(relabel(view, table).long(), torch.tensor(VOC_TABLE)[view.long()])


def test_the_mask_is_left_alone() -> None:
    mask = torch.full((2, 2), 16, dtype=torch.uint8)
    relabel(mask, to_table(VOC_TABLE)).zero_()
    assert mask.tolist() == [[16, 16], [16, 16]]


@pytest.mark.parametrize("labels", [[0] * 255, [0] * 255 + [ILLEGAL_LABEL], [0] * 255 + [256], [[0] * 256]])
def test_tables_that_are_none(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="label"):
        to_table(labels)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="uint8"):
        relabel(torch.zeros(2, 2, dtype=torch.int64), to_table(VOC_TABLE))
    with pytest.raises(ValueError, match="background"):
        to_table(VOC_TABLE, void="none")  # type: ignore[arg-type]


def test_a_mask_costs_less_than_what_indexing_costs() -> None:
    mask = torch.from_numpy(np.random.default_rng(0).integers(0, 21, (512, 512), np.uint8))
    table = to_table(VOC_TABLE)
    times = []
    for _ in range(40):
        start = time.perf_counter()
        relabel(mask, table)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.6e-3
