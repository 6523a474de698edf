"""Imported steps as the step store holds them: what is wrong with one is said, with what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.runs.imported import find_imported
from cispbench.harness.runs.step_store import StepStore
from cispbench.results.checked_json import read_checked, write_checked
from cispbench.splits.errors import StoreError

FACTS = {
    "step": 0, "code": "mib", "model": "deeplabv3-resnet101", "sha256": "ab" * 32, "classes": [0, 1, 2],
    "image_size": 512, "parameters": 100, "in_place_abn": True, "file": "x.pth", "source": "elsewhere",
}  # fmt: skip


@pytest.fixture
def manifest(commands: Any, finished: Any) -> Path:
    """The manifest of a step that passes for an imported one."""
    shutil.copytree(finished.steps, commands.steps)
    path = sorted(Path(commands.steps).glob("steps/*/manifest.json"))[0]
    write_checked(path, read_checked(path) | {"imported": FACTS})
    return path


def find(manifest: Path) -> Any:
    return find_imported(StepStore(manifest.parents[2]), manifest.parent.name)


def test_an_imported_step_is_found_with_its_facts(manifest: Path) -> None:
    found = find(manifest)
    assert (found.key, found.code, found.classes, found.in_place_abn) == (manifest.parent.name, "mib", (0, 1, 2), True)


@pytest.mark.parametrize("name", ["classes", "image_size", "in_place_abn", "model"])
@pytest.mark.parametrize("value", [None, 7.5])
def test_a_wrong_fact_is_named(manifest: Path, name: str, value: object) -> None:
    changed = {key: fact for key, fact in FACTS.items() if key != name} | ({} if value is None else {name: value})
    write_checked(manifest, read_checked(manifest) | {"imported": changed})
    with pytest.raises(StoreError, match=f"the manifest of the imported step {manifest.parent.name[:10]}: {name} is"):
        find(manifest)


def test_a_damaged_manifest_is_named_and_the_checkpoint_to_be_imported_again(manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace("deeplabv3-resnet101", "deeplabv3-resnet50"))
    with pytest.raises(StoreError, match=r"its checksum does not match\. Import its checkpoint again") as error:
        find(manifest)
    assert str(manifest) in str(error.value)
