"""A disk that is full when a step with a memory is begun or published: an error, and the same step afterwards."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.runs.step_store import EXEMPLARS, MANIFEST, WEIGHTS, StepStore
from cispbench.results import atomic
from cispbench.splits.errors import StoreError
from tests.harness.runs.test_memory import Keeper, planned, published, run, whole

__all__ = ["whole"]  # a fixture


@pytest.mark.parametrize(("name", "chosen_again"), [(EXEMPLARS, True), (WEIGHTS, False), (MANIFEST, False)])
def test_what_the_disk_refuses_is_done_by_the_next_run(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chosen_again: bool
) -> None:
    _, plan, folder = whole
    writing = atomic.os.fsync
    files: list[Path] = []

    def fail(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        files.append(path)
        second = plan.steps[1].key in str(path)
        if second and path.name.startswith(f".{name}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        writing(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(StoreError, match="the disk is full"):
        run(Keeper(), tmp_path)
    store = StepStore(tmp_path / "steps")
    assert files and store.has(plan.steps[0].key) and not store.has(plan.steps[1].key)
    monkeypatch.setattr(atomic.os, "fsync", writing)
    again = Keeper()
    run(again, tmp_path)
    assert [seen["step"] for seen in again.seen] == ([1, 2] if chosen_again else [2])
    assert published(tmp_path, planned(Keeper())) == published(folder, plan)
    assert not list(tmp_path.rglob("*.tmp")) and not list((tmp_path / "steps" / "steps").glob(".*"))
