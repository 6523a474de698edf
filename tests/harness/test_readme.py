"""What the README promises: its example method runs as written, its table is what `list` and the code say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cispbench.harness.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_example_method_runs_as_written(readme, tmp_path):
    (code,) = blocks(readme, "python")
    (entry,) = blocks(readme, "ini")
    (tmp_path / "my_method.py").write_text(code)
    info = tmp_path / "my_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-method\nVersion: 1.0\n")
    group, line = re.search(r"(cispbench\.methods) =\n\s+(.*)", entry).groups()
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


def test_every_command_exists(readme):
    for line in "".join(blocks(readme, "bash")).splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["cispbench"] and len(words) > 1:
            group = isinstance(main.commands[words[1]], click.Group)
            help_text = CliRunner().invoke(main, [*words[1 : 3 if group else 2], "--help"])
            assert help_text.exit_code == 0, line
            for option in (word for word in words if word.startswith("--") and word != "--help"):
                assert option in help_text.output, line


def test_the_number_of_settings_is_true(readme):
    import json

    rows = json.loads(CliRunner().invoke(main, ["list", "settings", "--json"]).output)
    assert f"{len(rows)} settings" in readme


def test_the_folders_are_the_packages(readme):
    named = set(re.findall(r"^\| `(\w+)/` \| `cispbench\.\w+` \|", readme, re.MULTILINE))
    assert named == {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"cispbench"}


def test_no_output_is_left_unprinted(readme):
    assert "TABLE" not in readme
