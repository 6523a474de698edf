"""Whether a method's state has changed in an iteration is told without reading a value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cispbench.harness.training.state import StateBefore

MEAN = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize(
    ("after", "changed"),
    [
        ({"mean": MEAN}, False),
        ({"mean": MEAN.clone()}, True),  # another tensor: its values are not compared
        ({"mean": MEAN, "count": torch.ones(1)}, True),
        ({}, True),
    ],
)
def test_a_state_is_the_same_if_its_tensors_are(after: dict[str, Tensor], changed: bool) -> None:
    assert StateBefore({"mean": MEAN}).changed(after) is changed


def test_a_write_is_seen_and_can_be_taken_back() -> None:
    mean = MEAN.clone()
    before = StateBefore({"mean": mean})
    mean.add_(1)
    assert before.changed({"mean": mean})
    assert torch.equal(before.copies["mean"], MEAN)


def test_a_tensor_of_inference_mode_may_have_been_written_to() -> None:
    with torch.inference_mode():
        mean = torch.ones(2)
    assert StateBefore({"mean": mean}).changed({"mean": mean})
