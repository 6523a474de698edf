"""`cispbench check --store`: all of a store is read, and everything that is wrong is listed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cispbench.harness.cli import main
from cispbench.results import record_files
from cispbench.results.checked_json import has_checksum
from cispbench.results.record import ADDED, StepRecord
from cispbench.results.store import Store, read_record

Maker = Callable[..., StepRecord]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def out(tmp_path: Path, make_record: Maker) -> Path:
    """A store of two runs, of six steps and of two."""
    store = Store(tmp_path / "out")
    for step in range(6):
        store.write(make_record(step=step))
    for step in range(2):
        store.write(make_record("overlapped-15-5", step, method="plop"))
    return store.path


def ask(*words: str) -> Result:
    result = CliRunner().invoke(main, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def audit(out: Path, *more: str) -> dict[str, Any]:
    result = ask("check", "--store", "--json", "--out", str(out), *more)
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (1 if found["problems"] else 0)
    return found


def age(path: Path, schema: int = 2) -> None:
    """Write a record as an earlier version did."""
    content = read_record(path).content() | {"schema": schema}
    for added in range(schema + 1, 3):
        content = {name: value for name, value in content.items() if name not in ADDED[added]}
    path.write_text(json.dumps(content))


def test_the_committed_store_is_sound() -> None:
    found = audit(ROOT / "results")
    assert found["problems"] == [] and found["without_checksum"] == 0
    assert found["records"] == len(list((ROOT / "results" / "runs").rglob("*.json"))) > 50


def test_a_sound_store_is_counted(out: Path, tmp_path: Path) -> None:
    result = ask("check", "--store", "--out", str(out))
    assert result.exit_code == 0
    assert result.stdout == f"{out}: 8 records of 2 runs read, 0 of them without a checksum.\n"
    counts = {"records": 8, "runs": 2, "without_checksum": 0, "rewritten": 0}
    assert audit(out) == {**counts, "problems": [], "steps": None}
    (tmp_path / "none").mkdir()
    assert audit(tmp_path / "none")["records"] == 0
    assert ask("check", "--store", "--out", str(tmp_path / "missing")).exit_code == 1


def test_everything_that_is_wrong_is_listed(out: Path) -> None:
    plop = out / "runs/voc/overlapped-15-5/plop/paper-segmenter-tiny-seed0-0123456789"
    mib = out / "runs/voc/overlapped-15-1/mib/paper-segmenter-tiny-seed0-0123456789"
    damaged = mib / "step-2.json"
    damaged.write_bytes(damaged.read_bytes().replace(b'"seed": 0', b'"seed": 1', 1))
    (plop / "step-0.json").unlink()
    (plop / "notes.txt").write_text("mine")
    (plop / ".step-1.json.abc.tmp").write_text("half")
    shutil.copy(mib / "step-1.json", mib / "step-1 (copy).json")
    shutil.copy(plop / "step-1.json", out / "runs" / "voc" / "step-1.json")
    (plop / "deeper").mkdir()
    (plop / "deeper" / "step-0.json").write_text("{}")
    (out / "runs" / "linked").symlink_to(mib)
    os.mkfifo(mib / "step-6.json")
    found = audit(out)
    wrong = {
        damaged: "checksum does not match",
        plop: "has no record of step 0, though of later ones",
        plop / "notes.txt": "is no record",
        plop / ".step-1.json.abc.tmp": "is no record",
        mib / "step-1 (copy).json": "holds the record of",
        out / "runs/voc/step-1.json": "is no record",
        plop / "deeper/step-0.json": "is no record",
        out / "runs/linked": "symbolic link",
        mib / "step-6.json": "not a plain file",
    }
    assert {Path(entry["file"]) for entry in found["problems"]} == set(wrong)
    for entry in found["problems"]:
        assert wrong[Path(entry["file"])] in entry["what"] and entry["file"] in entry["what"] and entry["action"]
    assert (found["records"], found["runs"]) == (6, 2)
    text = ask("check", "--store", "--out", str(out)).stdout
    assert all(str(path) in text for path in wrong) and "9 problems." in text


def test_a_folder_that_cannot_be_read_is_listed_and_the_rest_is_read(out: Path, monkeypatch: Any) -> None:
    closed, real = out / "runs" / "voc" / "overlapped-15-5", os.scandir

    def scan(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(record_files.os, "scandir", scan)
    found = audit(out)
    assert found["records"] == 6
    assert [entry["file"] for entry in found["problems"]] == [str(closed)]
    for command in (["table"], ["check"], ["leaderboard", "--output", str(out.parent / "site")]):
        result = ask(*command, "--out", str(out))
        assert result.exit_code == 1
        assert f"cannot read the folder {closed}" in result.stderr


def test_records_without_a_checksum_are_noted_and_rewritten(out: Path) -> None:
    files = sorted((out / "runs").rglob("*.json"))
    before = [read_record(path) for path in files]
    for path, schema in zip(files[:3], (1, 2, 2), strict=True):
        age(path, schema)
    assert [has_checksum(path.read_bytes()) for path in files[:4]] == [False, False, False, True]
    for command in (["table"], ["check", "--allow-empty"], ["leaderboard", "--output", str(out.parent / "site")]):
        result = ask(*command, "--out", str(out))
        assert result.exit_code == 0
        assert result.stderr.count("Note: 3 of 8 records") == 1 and "check --store --rewrite" in result.stderr
    assert audit(out)["without_checksum"] == 3
    (out / "runs" / "stray.json").write_text("{}")
    found = audit(out, "--rewrite")
    assert (found["rewritten"], found["without_checksum"], len(found["problems"])) == (0, 3, 1)
    (out / "runs" / "stray.json").unlink()
    found = audit(out, "--rewrite")
    assert (found["rewritten"], found["without_checksum"], found["problems"]) == (3, 0, [])
    assert [read_record(path) for path in files] == before
    assert ask("table", "--out", str(out)).stderr == ""


def test_options_of_the_comparison_are_refused(out: Path) -> None:
    for words in (["--store", "--complete"], ["--store", "--method", "mib"], ["--rewrite"]):
        result = ask("check", "--out", str(out), *words)
        assert result.exit_code == 2 and "--store" in result.stderr
