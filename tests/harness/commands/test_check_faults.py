"""`cispbench check` as CI calls it: runs of the committed sweep pass, and one with a planted fault does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from torch import Tensor

from cispbench.harness.cli import main
from cispbench.harness.sweep.matrix import read_sweep_file
from cispbench.methods import mbs
from cispbench.results.baselines_files import COMMITTED
from cispbench.splits.settings import Setting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SWEEP = read_sweep_file(COMMITTED / "sweeps" / "quick.yaml")


def train(method: str, home: Path, *changes: str) -> None:
    """Run a method as the committed sweep does, with its first seed."""
    words = [word for text in (*(SWEEP.set or ()), *changes) for word in ("--set", text)]
    words += ["--seed", str((SWEEP.seeds or ())[0]), "--out", str(home / "out"), "--steps-dir", str(home / "steps")]
    setting = (SWEEP.settings or ())[0]
    command = ["run", "--method", method, "--setting", setting, "--profile", str(SWEEP.profile), "--quiet", *words]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output


def verdict(home: Path, method: str) -> dict[str, Any]:
    """Return the cell of a method's run as the check sees it, with the exit code."""
    result = CliRunner().invoke(main, ["check", "--out", str(home / "out"), "--method", method, "--json"])
    (cell,) = json.loads(result.stdout)["cells"]
    return {**cell, "exit": result.exit_code}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps folder of the step that all methods go on from, left by a run that the check finds sound."""
    home = tmp_path_factory.mktemp("sound")
    train("mib", home)
    found = verdict(home, "mib")
    assert (found["status"], found["exit"]) == ("ok", 0), found
    for manifest in (home / "steps" / "steps").glob("*/manifest.json"):
        if json.loads(manifest.read_text())["previous_key"] is not None:
            shutil.rmtree(manifest.parent)
    return home / "steps"


def forget_pseudo_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchanged(target: Tensor, old_logits: Tensor, threshold: float = 0.7) -> Tensor:
        return target

    monkeypatch.setattr(mbs, "selective_pseudo_labels", unchanged)


def exchange_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the classes that a later step learns take each other's label."""
    right = Setting.label_table

    def wrong(self: Setting, step: int) -> tuple[int, ...]:
        table, (first, second, *_) = list(right(self, step)), self.steps[step].classes
        if step:
            table[first], table[second] = table[second], table[first]
        return tuple(table)

    monkeypatch.setattr(Setting, "label_table", wrong)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("method", "changes", "plant", "worse"),
    [
        ("mib", ["method.distillation=0"], None, "old"),
        ("mbs", [], forget_pseudo_labels, "old"),
        ("mib", [], exchange_labels, "new"),
    ],
    ids=["no distillation", "no pseudo-labels", "labels exchanged"],
)
def test_a_planted_fault_fails_the_check(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, changes: list[str],
    plant: Callable[[pytest.MonkeyPatch], None] | None, worse: str,
) -> None:  # fmt: skip
    shutil.copytree(base, tmp_path / "steps")
    if plant is not None:
        plant(monkeypatch)
    train(method, tmp_path, *changes)
    found = verdict(tmp_path, method)
    assert (found["status"], found["exit"]) == ("worse", 1), found
    assert found["scores"][worse]["status"] == "worse", found
