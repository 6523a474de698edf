"""Files around the code name the same version, rooms and packages as the code does."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg")
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")}


def test_citation_and_changes_name_the_version():
    version = CONFIG["metadata"]["version"]
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == version
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_container_holds_every_room():
    copied = dict(re.findall(r"^COPY (\w+) (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert copied == {room: room for room in ROOMS}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let_in >= ROOMS


def test_the_check_action_installs_what_the_check_needs():
    """With nothing but what the action installs, ``cispbench check`` runs."""
    action = yaml.safe_load((ROOT / ".github/actions/check/action.yml").read_text())
    script = "\n".join(step.get("run", "") for step in action["runs"]["steps"])
    installed = set(re.search(r"install --quiet (numpy.*)", script).group(1).split())
    required = {re.match(r"[\w-]+", line).group() for line in CONFIG["options"]["install_requires"].split("\n") if line}
    assert installed <= required
    modules = {"pillow": "PIL", "pyyaml": "yaml"}
    absent = [modules.get(name, name) for name in sorted(required - installed)]
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); from cispbench.harness.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "check", "--allow-empty", "--out", str(ROOT / "results")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "no reference" in done.stdout
