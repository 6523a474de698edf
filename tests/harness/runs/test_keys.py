"""The keys of steps and runs stay as they are: whoever has trained a step finds it again after an update.

``planned_keys.json`` was written by version 0.1.0. An entry may change only where results change, together with a
version that is part of the key (``TRAINING_VERSION``, the models' ``VERSION``, a method's ``version``) or a value of
the recipe. All changed with ``TRAINING_VERSION`` 3 and the models' ``VERSION`` 3 (memory format, losses in bands).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.data.synthetic import synthetic_source
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.sweep.matrix import SweepRequest, expand
from cispbench.harness.sweep.planning import plan_sweep

RECORDED = json.loads(Path(__file__).with_name("planned_keys.json").read_text())
METHODS = ("finetune", "joint", "lwf", "lwf_mc", "ilt", "mib", "plop", "mbs")
SHORT = {"seeds": (0, 1), "settings": ("overlapped-15-5",)}
PLANS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "paper": ({"settings": ("paper-table",)}, {}),
    "quick": ({"settings": ("overlapped-15-5", "overlapped-100-10", "disjoint-15-1"), "seeds": (0, 1)}, {}),
    "quick, micro-batch 2, deeplabv3-tiny": ({**SHORT, "model": "deeplabv3-tiny"}, {"micro_batch": 2}),
    "quick, no share": (SHORT, {"share": False}),
    "paper, weights none, overrides": (
        {
            "settings": ("overlapped-15-1-a", "overlapped-15-5"), "methods": ("mib", "plop", "finetune"),
            "set": ("optim.lr=0.005", "later.epochs=3", "data.crop=256"),
        },
        {"weights": "none"},
    ),
}  # fmt: skip


def planned(name: str, tmp_path: Path) -> dict[str, dict[str, object]]:
    """Plan what ``PLANS`` names, as a sweep without data does, and return the keys by run."""
    words, common = PLANS[name]
    asked = SweepRequest(**{"methods": METHODS, "profile": name.split(",")[0], **words})
    requests = expand(asked, RunRequest("", "", **common))
    runs = plan_sweep(requests, StepStore(tmp_path), ProgressView(), plan_only=True).runs
    return {
        f"{run.method.name} {run.setting.name} {run.seed}": {
            "run": run.run_key[:12], "steps": [step.key[:12] for step in run.steps],
        }
        for run in runs
    }  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_keys_are_those_of_earlier_versions(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CISPBENCH_DATA", raising=False)
    drawn = {dataset: synthetic_source(dataset).fingerprint for dataset in ("voc", "ade")}
    if "quick" in name and drawn != RECORDED["fingerprints"]:
        pytest.skip(
            "this processor draws the scenes with other roundings: their fingerprint, hence each key, is another"
        )
    assert planned(name, tmp_path) == RECORDED[name]
