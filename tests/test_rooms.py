"""The house plan holds: who imports whom, what a fresh start of the command line loads, and the public names."""

from __future__ import annotations

import ast
import configparser
import fnmatch
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "splits": set(),
    "results": {"splits"},
    "harness": {"splits", "results"},
    "methods": {"harness", "splits"},
    "reports": {"results", "splits"},
}
TOP = {"cli.py", "launch.py"}  # the command line's modules may use every room, inside commands,
TOP_FOLDER = "commands"  # and so may those of its groups
WITHOUT_TORCH = ("splits", "results", "reports")
PUBLIC = {
    "splits.settings": ["parse_setting", "Setting", "Step"],
    "splits.selection": ["select_images"],
    "results.scores": ["score", "Scores"],
    "results.ledger": ["load_reported", "lint_row"],
    "results.store": ["Store"],
    "harness.method": ["Method", "Batch", "StepContext"],
    "harness.evaluate": ["confusion_matrix"],
    "methods.losses": ["unbiased_cross_entropy", "unbiased_distillation", "distillation", "bce_with_ignore"],
    "methods.lwf_mc": ["lwf_mc_loss"],
    "methods.mib": ["balanced_init"],
    "methods.plop": ["entropy", "entropy_thresholds", "pseudo_labels", "local_pod_embedding", "pod_loss"],
    "methods.mbs": [
        "selective_pseudo_labels", "patch_weights", "adaptive_feature_distillation",
        "label_guided_output_distillation", "orthogonality",
    ],
}  # fmt: skip


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_floors_below(room):
    for path in (ROOT / room).rglob("*.py"):
        if path.name in TOP or path.parent.name == TOP_FOLDER:
            continue
        rooms = {name.split(".")[1] for name in imported(path) if name.startswith("cispbench.")} - {room}
        assert rooms <= MAY_IMPORT[room], f"{path} imports {rooms - MAY_IMPORT[room]}"
        if room in WITHOUT_TORCH:
            assert not {name for name in imported(path) if name.split(".")[0] in ("torch", "torchvision", "timm")}


@pytest.mark.parametrize(
    "room", ["splits.settings", "splits.selection", "results.store", "reports.tables", "harness.cli"]
)
def test_a_light_room_loads_nothing_heavy(room):
    heavy = ["torch", "torchvision", "timm", "pandas", "matplotlib"]
    code = f"import sys, cispbench.{room}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "words",
    [
        "sweep --methods finetune,joint,mib,plop,mbs,lwf,lwf_mc,ilt --settings paper-table --seeds 0,1 --plan",
        "sweep --methods mib,mbs --settings overlapped-15-1 --profile quick --plan",
        "show plop --setting overlapped-100-10",
        "list methods",
    ],
)
def test_a_command_that_computes_nothing_spares_its_user_the_import_of_torch(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no data and no records there
    code = "import sys; from cispbench.harness.cli import main; sys.modules['torch'] = None; main()"
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") > 5


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_there_and_documented(module):
    loaded = importlib.import_module(f"cispbench.{module}")
    for name in PUBLIC[module]:
        assert getattr(loaded, name).__doc__, f"{module}.{name} has no docstring"


def test_every_package_and_file_that_code_needs_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages, data = config["options"]["packages"].split(), config["options.package_data"]
    folders = {path.parent.relative_to(ROOT) for room in MAY_IMPORT for path in (ROOT / room).rglob("__init__.py")}
    assert {f"cispbench.{'.'.join(folder.parts)}" for folder in folders} == set(packages)
    for folder in folders:
        patterns = data[f"cispbench.{'.'.join(folder.parts)}"].replace(",", " ").split()
        deeper = [other for other in folders if folder in other.parents]
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT / folder)
            if path.is_dir() or path.suffix in (".py", ".pyc") or any(ROOT / other in path.parents for other in deeper):
                continue
            # Measured records and the leaderboard made of them belong to a checkout, not to an installation.
            if folder.parts == ("results",) and name.parts[0] in ("runs", "leaderboard", "leaderboard.md"):
                continue
            assert any(fnmatch.fnmatchcase(str(name), pattern) for pattern in patterns), f"{path} is not installed"


def test_no_harness_module_names_a_method():
    for path in (ROOT / "harness").rglob("*.py"):
        if path.name in TOP or path.parent.name == TOP_FOLDER:
            continue
        text = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        # "joint" is left out: it is an attribute of every method, too.
        assert not text & {"mib", "plop", "mbs", "finetune", "lwf", "lwf_mc", "ilt"}, path
