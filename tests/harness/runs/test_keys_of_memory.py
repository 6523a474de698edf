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


class InOnePhase(Keeper):
    """Has a single phase of another name than the usual one; notes how exemplars are chosen."""

    def phases(self, setting: Any, step: int) -> tuple[str, ...]:
        return ("only",)

    def select_exemplars(self, images: Any, kept: Any, context: Any) -> Any:
        chosen = super().select_exemplars(images, kept, context)
        self.seen[-1]["how"] = torch.is_autocast_enabled("cpu"), [len(batch.ids) for batch in self.seen[-1]["batches"]]
        return chosen


def test_exemplars_are_chosen_as_the_first_phase_is_trained(tmp_path: Path) -> None:
    own = [
        f"phases.only.{change}" for change in ("batch=6", "precision=fp32", "lr=0.01", "iterations=3", "momentum=0.9")
    ]
    changes = {"one": ["optim.precision=fp32"], "other": ["optim.precision=bf16", "optim.batch=8", "later.batch=8"]}
    plans = {name: planned(InOnePhase(), *own, *words) for name, words in changes.items()}
    methods = {name: InOnePhase() for name in plans}
    for name, plan in plans.items():
        run(methods[name], tmp_path / name, plan=plan)
    keys = [[step.key for step in plan.steps] for plan in plans.values()]
    assert keys[0] == keys[1]
    how = [[seen["how"] for seen in method.seen] for method in methods.values()]
    assert how[0] == how[1] and {precise for precise, _ in how[0]} == {False} and how[0][0][1][0] == 6
