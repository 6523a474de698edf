"""EWC, PI, RW, EWF and REMINDER as they are run: on both families, and bit for bit the same after an interruption."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cispbench.harness.runs.execute import execute
from cispbench.harness.training.job import StoppedError
from tests.methods.short_runs import kept, options, plan

TERMS = {
    "ewc": {"cross_entropy"},
    "pi": {"cross_entropy"},
    "rw": {"cross_entropy"},
    "ewf": {"cross_entropy", "distillation"},
    "ewf plop": {"cross_entropy", "pod"},
    "reminder": {"cross_entropy", "pod", "class_similarity"},
}
STATE = {"ewc": "fisher.", "pi": "score.", "rw": "score.", "ewf plop": "base.thresholds", "reminder": "prototypes"}


@pytest.mark.parametrize("model", ["segmenter-tiny", "deeplabv3-tiny"])
@pytest.mark.parametrize("name", TERMS)
def test_a_run_and_one_that_is_interrupted(tmp_path: Path, name: str, model: str) -> None:
    made = plan(name, model)
    whole = execute(made, options(tmp_path / "whole")).records
    assert set(whole[-1].losses.terms) - {"total"} == TERMS[name]
    assert whole[-1].finished
    calls, interruptions = itertools.count(1), 0
    while interruptions < 30:
        places = replace(options(tmp_path / "parts"), stop=lambda: next(calls) % 2 == 0)
        try:
            parts = execute(plan(name, model), places).records
            break
        except StoppedError:
            interruptions += 1
    assert interruptions == len(made.steps)  # one in each
    assert [record.confusion for record in parts] == [record.confusion for record in whole]
    for ours, theirs in zip(kept(made, tmp_path / "parts"), kept(made, tmp_path / "whole"), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    state = kept(made, tmp_path / "whole")[-1]
    assert any(key.startswith(STATE[name]) for key in state) if name in STATE else not state
