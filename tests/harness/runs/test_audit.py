"""The audit of a step store: what is damaged or left over is named with what to do, and nothing is changed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.machine.locks import run_lock
from cispbench.harness.runs.audit import audit_steps
from cispbench.harness.runs.step_store import StepStore
from cispbench.harness.training.checkpoint_file import write_checkpoint
from cispbench.results.audit import Finding
from cispbench.results.checked_json import read_checked, write_checked
from cispbench.splits.errors import StoreError


@pytest.fixture
def store(commands: Any, finished: Any) -> StepStore:
    """A private copy of the step store of the finished tiny run."""
    shutil.copytree(finished.steps, commands.steps)
    return StepStore(commands.steps)


@pytest.fixture
def step(store: StepStore) -> Path:
    """The folder of one of its steps."""
    return store.folder(store.published()[0])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def state(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def cannot_be_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = os.open

    def fail(name: Any, *args: int, **more: Any) -> int:
        if name == path:
            raise OSError(errno.EIO, "Input/output error")
        return right(name, *args, **more)

    monkeypatch.setattr(os, "open", fail)


def only(store: StepStore) -> Finding:
    before = state(store.root)
    (finding,) = audit_steps(store).findings
    assert state(store.root) == before, "an audit changes nothing"
    assert finding.action
    return finding


def test_a_sound_store_has_no_findings(store: StepStore) -> None:
    audit = audit_steps(store)
    assert audit.findings == () and audit.sound
    assert (audit.counts["steps"], audit.counts["evaluations"], audit.counts["checkpoints"]) == (2, 2, 0)
    weights = [*store.root.glob("steps/*/*.safetensors")]
    assert audit.counts["bytes"] == sum(path.stat().st_size for path in weights) > 0
    assert audit_steps(StepStore(store.root / "none")).findings == ()


def test_a_store_that_cannot_be_listed_is_no_sound_one(store: StepStore) -> None:
    shutil.rmtree(store.root / "steps")
    (store.root / "steps").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot read the folder .*steps"):
        audit_steps(store)


def test_a_checkpoint_that_cannot_be_read_is_a_finding_and_the_rest_is_audited(
    store: StepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.work("unfinished") / "checkpoint.pt"
    write_checkpoint(path, {"iteration": 1})
    cannot_be_opened(path, monkeypatch)
    audit = audit_steps(store)
    assert [finding.damaged for finding in audit.findings] == [True] and str(path) in audit.findings[0].what
    assert audit.counts["steps"] == 2


@pytest.mark.parametrize("name", ["weights.safetensors", "method.safetensors", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "gone"])
def test_damage_of_a_step_is_found(store: StepStore, step: Path, name: str, how: str) -> None:
    flip(step / name) if how == "flip" else (step / name).unlink()
    found = only(store)
    assert found.damaged and found.path == step and str(step / name) in found.what and "trained anew" in found.action


def test_a_damaged_evaluation_is_found(store: StepStore, step: Path) -> None:
    (path,) = step.glob("evaluation-*.json")
    flip(path)
    found = only(store)
    assert found.damaged and found.path == path and "checksum" in found.what and "counted anew" in found.action


def test_evaluations_that_disagree_about_the_test_images_are_found(store: StepStore, step: Path) -> None:
    (path,) = step.glob("evaluation-*.json")
    content = read_checked(path)
    content["confusion"][3][0] += 5
    write_checked(path, content)
    found = only(store)
    assert found.damaged and "class index 3" in found.what and str(path) in found.what


def test_what_killed_processes_left_is_found_and_is_no_damage(store: StepStore, step: Path) -> None:
    work = store.root / "work"
    lefts = [
        store.root / "steps" / f".{step.name}-123" / "weights.safetensors", step / ".manifest.json.abc.tmp",
        work / step.name / "checkpoint.pt", work / "other" / ".checkpoint.pt.abc.tmp",
    ]  # fmt: skip
    for path in lefts:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    audit = audit_steps(store)
    assert audit.sound
    assert [finding.path for finding in audit.findings] == sorted([lefts[0].parent, *lefts[1:]])


def test_what_was_set_aside_is_found(store: StepStore, step: Path) -> None:
    store.set_aside(step.name)
    aside = store.root / "work" / step.name / "checkpoint.pt.damaged-0"
    aside.write_bytes(b"x")
    audit = audit_steps(store)
    assert audit.sound and audit.counts["steps"] == 1
    assert {finding.path.name for finding in audit.findings} == {f"{step.name}.damaged-0", aside.name}
    assert all("delete it" in finding.action for finding in audit.findings)


def test_checkpoints_of_unfinished_steps_are_compared(store: StepStore) -> None:
    path = store.work("unfinished") / "checkpoint.pt"
    write_checkpoint(path, {"iteration": 1})
    audit = audit_steps(store)
    assert audit.findings == () and audit.counts["checkpoints"] == 1
    flip(path)
    found = only(store)
    assert found.damaged and found.path == path and "starts anew" in found.action
    with run_lock(path.parent, "training", 0):
        audit = audit_steps(store)
    assert audit.findings == () and audit.counts["at work"] == 1


def test_strange_files_are_found(store: StepStore, step: Path) -> None:
    (step / "notes.txt").write_text("mine")
    assert only(store).path == step / "notes.txt"


def test_manifests_without_checksum_are_counted(store: StepStore, step: Path) -> None:
    path = step / "manifest.json"
    path.write_text(json.dumps(read_checked(path) | {"schema": 1}, indent=1))
    audit = audit_steps(store)
    assert audit.findings == () and audit.counts["manifests without checksum"] == 1


def test_an_audit_does_not_import_torch(store: StepStore) -> None:
    code = (
        "import sys; from pathlib import Path; from cispbench.harness.runs.step_store import StepStore\n"
        "from cispbench.harness.runs.audit import audit_steps\n"
        "print(audit_steps(StepStore(Path(sys.argv[1]))).counts['steps'], 'torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(store.root)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "2 False\n"


@pytest.mark.parametrize("name", ["manifest.json", "evaluation"])
def test_a_file_that_cannot_be_read_is_a_finding_and_the_rest_is_audited(
    store: StepStore, step: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = step.glob(f"{name}*")
    cannot_be_opened(path, monkeypatch)
    audit = audit_steps(store)
    (found,) = audit.findings
    assert found.damaged and str(path) in found.what and found.action
    assert audit.counts["steps"] == (1 if name == "manifest.json" else 2)
