"""The list of planted faults fits the code: a fault whose text is gone would never be planted."""

from __future__ import annotations

from tests.mutations.run import read_mutations


def test_every_fault_can_be_planted() -> None:
    assert read_mutations()
