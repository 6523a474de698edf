"""Why a step has another key: every part of a key is named when it changes, from manifests and from records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.runs.key_parts import changed_parts, parts_from_record
from cispbench.harness.runs.plan import PlannedStep, RunPlan
from cispbench.harness.runs.prepare import Preparer
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_store import StepStore
from cispbench.results.record_fields import DataUsed, Execution, MethodUsed, ModelUsed


def planned(tmp_path: Path, *overrides: str, **asked: Any) -> tuple[RunPlan, PlannedStep]:
    request = RunRequest("plop", "overlapped-15-5", profile="quick", overrides=overrides, **asked)
    plan = Preparer(StepStore(tmp_path), ProgressView()).prepare(request)
    return plan, plan.steps[1]


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("training", 1, "training is 3, was 1"),
        ("models", 1, "models is 3, was 1"),
        ("data", "abc", "the data changed"),
        ("images", "abc", "the data changed"),
        ("classes", [1, 2], "the classes changed"),
        ("model", "another", "model is segmenter-tiny, was another"),
        ("weights", "abc", "the pre-trained weights changed"),
        ("freeze_batch_norm", True, "freeze_batch_norm is False, was True"),
        ("seed", 7, "seed is 0, was 7"),
        ("apart", ["plop", "overlapped-15-5"], "--no-share was given or left out"),
        ("parts", 3, "the number of micro-batches is 1, was 3"),
    ],
)
def test_every_part_of_a_key_is_named_when_it_changes(tmp_path: Path, part: str, value: object, says: str) -> None:
    _, step = planned(tmp_path)
    assert changed_parts(step.made_of, step.made_of, 1) == []
    assert changed_parts({**step.made_of, part: value}, step.made_of, 1) == [says]


def test_the_key_has_no_part_that_is_never_named(tmp_path: Path) -> None:
    """Whatever else is changed in a part is reported, too, but for the key of the step before."""
    _, step = planned(tmp_path, model="deeplabv3-tiny", micro_batch=2, share=False)
    for part in step.made_of:
        before = json.loads(json.dumps(dict(step.made_of)))
        before[part] = {**before[part], "new": 1} if isinstance(before[part], dict) else "another"
        if part == "method":
            before[part] = {**before[part], "version": 0}
        assert bool(changed_parts(before, step.made_of, 1)) == (part != "previous"), part


def test_options_are_named_as_set_takes_them(tmp_path: Path) -> None:
    before = planned(tmp_path)[1].made_of
    now = planned(tmp_path, "later.lr=0.5", "method.pod=0.5", "data.flip=0.25")[1].made_of
    changes = changed_parts(before, now, 1)
    assert sorted(change.split(" is ")[0] for change in changes) == ["data.flip", "later.lr", "method.pod"]


@pytest.mark.parametrize("overrides", [(), ("later.epochs=2",), ("later.iterations=7", "optim.epochs=2")])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_record_tells_the_same_parts_as_the_plan(
    tmp_path: Path, make_record: Any, overrides: tuple[str, ...], micro_batch: int | None
) -> None:
    plan, _ = planned(tmp_path, *overrides, model="deeplabv3-tiny", micro_batch=micro_batch)
    for step in plan.steps:
        record = replace(
            make_record("overlapped-15-5", step.step, "plop"), recipe=plan.recipe.as_recorded(), seed=0,
            method=MethodUsed("plop", plan.method.version, dict(plan.method.options)),
            model=ModelUsed(plan.recipe.model, 1, "none", None), execution=Execution(1, micro_batch),
            data=DataUsed("synthetic", plan.data.fingerprint, len(step.images), 4, step.list_sha256),
            classes=plan.learnt.steps[step.step].classes,
        )  # fmt: skip
        parts = parts_from_record(record, plan.method.shared_base)
        assert changed_parts(parts, step.made_of, step.step) == []
        assert plan.recipe.phase(step.step).as_recorded() == parts["optim"]
