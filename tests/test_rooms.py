"""The house plan holds: who imports whom, and what a fresh start of the command line loads."""

from __future__ import annotations

import ast
import configparser
import fnmatch
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The floors of the house: a room may import those named, and itself. ``docs/architecture.md`` shows the same table.
MAY_IMPORT = {
    "splits": set(),
    "results": {"splits"},
    "harness": {"splits", "results"},
    "methods": {"harness", "splits"},
    "reports": {"results", "splits"},
}
# The wings of ``harness/`` from the ground up: one may import those above it in this list, in any way: at its head,
# inside a function, or for type checking alone. ``commands`` and ``cli`` may use every room besides.
WINGS = [
    "machine", "pixel_bands", "cross_entropy", "distributed", "models", "step", "method", "wrapper", "registry",
    "evaluate", "recipes", "data", "training", "cost", "runs", "sweep", "sweep.slurm", "contract", "predictions",
    "commands", "cli",
]  # fmt: skip
# The same for ``reports/``.
REPORTS = ["tables", "ledger", "check", "leaderboard", "plots"]
TOP = ("cli", "commands")
WITHOUT_TORCH = ("splits", "results", "reports")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def wing_of(path: Path) -> str:
    """Return the wing that a file of ``harness/`` or ``reports/`` belongs to ("" for the room's own ``__init__``)."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    if parts[:2] == ("sweep", "slurm"):
        return "sweep.slurm"
    return "" if parts == ("__init__",) else parts[0]


def modules() -> dict[str, Path]:
    """Return every module of the house by its dotted name."""
    found = {}
    for room in MAY_IMPORT:
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(("cispbench", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def module_imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the house that a file imports, wherever in it and for whatever use."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cispbench"):
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                names.add(deeper if deeper in known else str(node.module))
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("cispbench")}
    return names


@pytest.mark.parametrize(("room", "wings"), [("harness", WINGS), ("reports", REPORTS)])
def test_a_wing_imports_only_lower_ones(room, wings):
    known = modules()
    present = {wing_of(path) for name, path in known.items() if name.startswith(f"cispbench.{room}")} - {""}
    assert present == set(wings)
    for path in (ROOT / room).rglob("*.py"):
        if not wing_of(path):
            continue
        own = wings.index(wing_of(path))
        for name in module_imports(path, known):
            if name.startswith(f"cispbench.{room}."):
                other = wing_of(known[name])
                assert wings.index(other) <= own, f"{path} imports {name}: {other} lies above {wings[own]}"


def test_no_module_imports_itself_by_a_detour():
    """Imports form no circle, those for type checking included (the command line's lazy ones, too)."""
    known = modules()
    imports = {name: module_imports(path, known) - {name} for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(imports.get(name, ())):
                visit(other, (*way, name))
            done.add(name)

    for name in known:
        visit(name, ())


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_floors_below(room):
    for path in (ROOT / room).rglob("*.py"):
        if wing_of(path) in TOP:
            continue
        rooms = {name.split(".")[1] for name in imported(path) if name.startswith("cispbench.")} - {room}
        assert rooms <= MAY_IMPORT[room], f"{path} imports {rooms - MAY_IMPORT[room]}"
        if room in WITHOUT_TORCH:
            assert not {name for name in imported(path) if name.split(".")[0] in ("torch", "torchvision", "timm")}


@pytest.mark.parametrize(
    "room", ["splits.settings", "splits.selection", "results.store", "reports.tables.render", "harness.cli"]
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
        "list models",
        "list settings",
        "show mib --model segmenter-vit-b16",
    ],
)
def test_a_command_that_computes_nothing_spares_its_user_the_import_of_torch(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no data and no records there
    code = "import sys; from cispbench.harness.cli import main; sys.modules['torch'] = None; main()"
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") > 5


def test_every_package_and_file_that_code_needs_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages, data = config["options"]["packages"].split(), config["options.package_data"]
    rooms = ("cispbench", *MAY_IMPORT)
    inits = [path for room in rooms for path in (ROOT / room).rglob("__init__.py")]
    folders = {path.parent.relative_to(ROOT) for path in inits}
    names = {
        folder: ".".join(folder.parts if folder.parts[0] == "cispbench" else ("cispbench", *folder.parts))
        for folder in folders
    }
    assert set(names.values()) == set(packages)
    for folder in folders:
        patterns = data.get(names[folder], "").replace(",", " ").split()
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
        if wing_of(path) in TOP:
            continue
        text = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        # "joint" is left out: it is an attribute of every method, too.
        assert not text & {"mib", "plop", "mbs", "finetune", "lwf", "lwf_mc", "ilt"}, path


def test_no_code_asks_for_the_name_of_a_data_set():
    """What differs between data sets is a fact of their entries, or a condition in a recipe."""
    for room in ("harness", "reports"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, (ast.Compare, ast.Dict)):
                    names = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                    assert not names & {"voc", "ade"}, f"{path}, line {node.lineno}"
