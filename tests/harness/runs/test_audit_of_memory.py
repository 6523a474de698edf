"""The audit knows the exemplars of steps in training, and the memory of finished ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.method import Exemplar
from cispbench.harness.runs.audit import audit_steps
from cispbench.harness.runs.exemplars import save_chosen
from cispbench.harness.runs.step_store import EXEMPLARS, StepStore
from cispbench.harness.training.checkpoint_file import write_checkpoint
from cispbench.results.checked_json import read_checked, write_checked

USED = {"memory": [{"id": "a", "step": 0, "classes": [1]}], "exemplars": {"images": 1, "bytes": 4}}


@pytest.fixture
def store(commands: Any, finished: Any) -> StepStore:
    """A private copy of the step store of the finished tiny run."""
    shutil.copytree(finished.steps, commands.steps)
    return StepStore(commands.steps)


def chosen(folder: Path) -> Path:
    path = folder / EXEMPLARS
    save_chosen(path, folder.name, ("keeper", None), [Exemplar("a", 0, (1,))])
    return path


def test_exemplars_of_an_unfinished_step_are_no_stranger(store: StepStore) -> None:
    folder = store.work("unfinished")
    write_checkpoint(folder / "checkpoint.pt", {"iteration": 1})
    path = chosen(folder)
    audit = audit_steps(store)
    assert audit.findings == () and audit.counts["checkpoints"] == 1
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    (found,) = audit_steps(store).findings
    assert found.damaged and found.path == path and str(path) in found.what and "chosen anew" in found.action


def test_exemplars_of_a_finished_step_are_left_over(store: StepStore) -> None:
    path = chosen(store.work(store.published()[0]))
    (found,) = audit_steps(store).findings
    assert not found.damaged and found.path == path and "its step is finished" in found.what


@pytest.mark.parametrize(
    "lie",
    [{"exemplars": {"images": 2, "bytes": 8}}, {"memory": []}, {"exemplars": None},
     {"memory": [*USED["memory"], *USED["memory"]], "exemplars": {"images": 2, "bytes": 8}}],  # type: ignore[misc]
    ids=str,
)  # fmt: skip
def test_a_manifest_counts_the_exemplars_that_it_names(store: StepStore, lie: dict[str, Any]) -> None:
    folder = store.folder(store.published()[0])
    content = read_checked(folder / "manifest.json")
    write_checked(folder / "manifest.json", content | USED)
    assert audit_steps(store).findings == ()
    write_checked(folder / "manifest.json", content | USED | lie)
    (found,) = audit_steps(store).findings
    assert found.damaged and found.path == folder and "manifest.json" in found.what and "memory" in found.what
