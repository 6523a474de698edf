"""Keys of steps whose method has a memory, or asks for passes: equal keys stand for equal results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.harness.runs.test_memory import Keeper, planned, run


def _selection(plan: Any, method: Keeper, folder: Path) -> list[Any]:
    run(method, folder, plan=plan)
    return [(batch.ids, batch.images, batch.target) for seen in method.seen for batch in seen["batches"]]


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a, b in zip(one, other, strict=True)
    )


def test_how_a_run_is_tested_does_not_change_what_its_steps_are_made_of(tmp_path: Path) -> None:
    plans = [planned(Keeper()), planned(Keeper(), "evaluation.resize_short=16", "evaluation.crop=12")]
    found = [_selection(plan, Keeper(), tmp_path / str(number)) for number, plan in enumerate(plans)]
    assert [step.key for step in plans[0].steps] == [step.key for step in plans[1].steps]
    assert plans[0].evaluation_key != plans[1].evaluation_key
    assert found[0] and _same(*found)
