"""A memory on two processes: the first one chooses, and both train on what one process would train on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]

TRAIN = """
import importlib.util, json, os, sys
from pathlib import Path
import torch

spec = importlib.util.spec_from_file_location("memory_runs", sys.argv[1])
runs = importlib.util.module_from_spec(spec)
sys.modules["memory_runs"] = runs  # dataclasses and pickles look for it
spec.loader.exec_module(runs)
from cispbench.harness.distributed.group import ALONE, joined, launched

folder, use = Path(sys.argv[2]), sys.argv[3]

def train(group):
    method = runs.Keeper()
    method.use = use
    plan = runs.planned(method, devices=group.size)
    runs.run(method, folder, plan=plan, group=group)
    batches = [[step, batch.ids, batch.origin.tolist()] for step, batch in method.batches]
    told = {"keys": [step.key for step in plan.steps], "chosen": len(method.seen), "batches": batches}
    (folder / f"told-{group.rank}.json").write_text(json.dumps(told))

if launched():
    with joined(torch.device("cpu")) as group:
        train(group)
else:
    train(ALONE)
"""


def train(folder: Path, use: str, devices: int) -> list[dict[str, Any]]:
    """Train a run and return what each process tells of it."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, "-c", TRAIN, str(ROOT / "tests/harness/runs/test_memory.py"), str(folder), use]
    processes = []
    for rank in range(devices):
        group = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(devices), "MASTER_PORT": port}
        found = os.environ | ({"MASTER_ADDR": "127.0.0.1", **group} if devices > 1 else {}) | {"OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(words, env=found, cwd=folder, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(devices)]


@pytest.mark.parametrize("use", ["append", "replace"])
def test_two_processes_train_on_the_exemplars_of_one(tmp_path: Path, use: str) -> None:
    from safetensors.torch import load_file

    (one,) = train(tmp_path / "one", use, 1)
    first, second = train(tmp_path / "two", use, 2)
    assert (one["chosen"], first["chosen"], second["chosen"]) == (2, 2, 0)
    assert one["keys"] == first["keys"] == second["keys"]
    for whole, left, right in zip(one["batches"], first["batches"], second["batches"], strict=True):
        assert whole == [left[0], left[1] + right[1], left[2] + right[2]] and left[0] == right[0]
    for key in one["keys"]:
        alone, shared = (tmp_path / name / "steps" / "steps" / key for name in ("one", "two"))
        ours, theirs = (json.loads((path / "manifest.json").read_text()) for path in (alone, shared))
        assert ours.get("memory") == theirs.get("memory") and ours.get("exemplars") == theirs.get("exemplars")
        before, after = (load_file(path / "weights.safetensors") for path in (alone, shared))
        assert all(torch.allclose(before[name], after[name], rtol=1e-3, atol=1e-4) for name in before)
