"""The example on the page "Add a method" runs as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-method.md"


def block(language: str) -> str:
    found: str = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    return found


def test_the_example_method_runs_as_written(tmp_path):
    code = block("python")
    (tmp_path / "my_method.py").write_text(code)
    info = tmp_path / "my_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-method\nVersion: 1.0\n")
    group, line = re.search(r"(cispbench\.methods) =\n\s+(.*)", block("ini")).groups()
    (info / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
    short = ["optim.iterations=3", "later.iterations=2", "method.weight=1"]
    done = subprocess.run(
        [sys.executable, "-m", "cispbench.harness.cli", "run", "--method", "featdist", "--setting", "overlapped-15-5",
         "--profile", "quick", "--out", "out", "--steps-dir", "steps", *(word for s in short for word in ("--set", s))],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "featdist (measured)" in done.stdout
    assert len(code.strip().splitlines()) <= 35
