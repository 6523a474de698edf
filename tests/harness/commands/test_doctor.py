"""``cispbench doctor`` finds what a machine lacks, says what to do, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cispbench.harness.commands import doctor


def findings(commands: Any, code: int, *words: str) -> dict[str, dict[str, Any]]:
    result = commands.invoke(["doctor", "--json", *words])
    assert result.exit_code == code, result.output
    content = json.loads(result.stdout)
    found = {entry["topic"]: entry for entry in content["findings"]}
    assert content["problems"] == sum(entry["state"] == "problem" for entry in found.values())
    return found


def test_a_machine_without_data_is_ready_and_stays_as_it_is(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CISPBENCH_DATA", raising=False)
    result = commands.invoke(["doctor", "--data-root", "absent"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("Ready: cispbench run ")
    assert "the folder absent (--data-root) does not exist" in result.stdout
    assert "Unpack VOCtrainval_11-May-2012.tar" in result.stdout
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines if "://" not in line) <= 100  # an address is not broken: it is copied
    (needed,) = [line for line in lines if "paper with mbs" in line]
    assert "vit_base_patch16_384-augreg" in needed
    assert "vit_base_patch16_384.augreg_in21k_ft_in1k.safetensors:" in result.stdout
    assert list(commands.home.iterdir()) == []


def test_the_weights_of_mbs_are_found(commands: Any) -> None:
    folder = commands.home / "steps" / "weights"
    folder.mkdir(parents=True)
    (folder / "vit_base_patch16_384.augreg_in21k_ft_in1k.safetensors").touch()
    found = findings(commands, 0, "--data-root", "absent", "--steps-dir", str(commands.home / "steps"))
    assert found["paper with mbs"]["state"] == "ok"


def test_data_and_folders_are_found(commands: Any, voc: Path) -> None:
    (commands.home / "cispbench-results").mkdir()
    found = findings(commands, 0, "--data-root", str(voc))
    assert found["data voc"]["state"] == "ok"
    assert "12 train and 6 val images" in found["data voc"]["text"]
    assert found["data ade"]["state"] == "note"
    assert found["records"]["text"].startswith("cispbench-results, ") and found["records"]["state"] == "ok"
    assert list((commands.home / "cispbench-results").iterdir()) == []


def test_a_file_in_the_way_of_a_store_is_a_problem(commands: Any) -> None:
    (commands.home / "taken").write_text("")
    found = findings(commands, 1, "--steps-dir", "taken/steps")
    assert found["steps"]["state"] == "problem"
    assert "a file is in the way" in found["steps"]["text"]
    assert found["records"]["state"] == "ok"


def test_a_full_disk_and_a_read_only_one_are_problems(
    commands: Any, disk: Path, fill: Callable[[int], Path], freeze: Callable[[], None]
) -> None:
    fill(0)
    found = findings(commands, 1, "--out", str(disk / "out"))
    assert "the disk is full" in found["records"]["text"]
    freeze()
    found = findings(commands, 1, "--out", str(disk / "out"))
    assert "read-only" in found["records"]["text"]


def test_a_package_that_cannot_be_imported_is_a_problem(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    found = findings(commands, 1)
    assert found["torchvision"]["state"] == "problem"
    assert "cannot be imported" in found["torchvision"]["text"]
    assert "pip install" in found["torchvision"]["hint"]
    assert "accelerator" not in found


def test_a_driver_without_a_torch_for_it_is_told(
    commands: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(doctor, "DRIVERS", (tmp_path,))
    assert "sees no GPU" in findings(commands, 0)["accelerator"]["text"]
    monkeypatch.setattr(doctor, "DRIVERS", (tmp_path / "absent",))
    assert findings(commands, 0)["accelerator"]["text"] == "none"


def test_little_memory_and_little_disk_are_noted(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEAST_MEMORY", "LEAST_DISK", "LEAST_SHARED"):
        monkeypatch.setattr(doctor, name, 2**60)
    found = findings(commands, 0)
    assert {found[topic]["state"] for topic in ("memory", "records", "steps")} == {"note"}
    assert all(found[topic]["hint"] for topic in ("memory", "records", "steps"))


def test_a_device_that_cannot_be_used_is_told(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check.")

    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", fail)
    found = findings(commands, 0)["accelerator"]
    assert found["state"] == "note" and "cuda:0 cannot be used: Found no NVIDIA driver" in found["text"]


@pytest.mark.parametrize("path", ["link/steps", "x" * 300])
def test_folders_that_cannot_be_are_problems(commands: Any, path: str) -> None:
    (commands.home / "link").symlink_to("nowhere")
    assert findings(commands, 1, "--steps-dir", path)["steps"]["state"] == "problem"


def test_without_numpy_the_doctor_says_so() -> None:
    script = """
import sys
sys.modules["numpy"] = None
from cispbench.harness.cli import main
main(["doctor"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "problem  numpy" in done.stdout
