"""The tables of docs/architecture.md and the names of docs/api.md are those that tests/test_rooms.py holds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def load_rooms():
    spec = importlib.util.spec_from_file_location("rules_of_rooms", ROOT / "tests" / "test_rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROOMS = load_rooms()


def section(heading: str) -> str:
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE).group(1)


def rows(heading: str) -> list[list[str]]:
    """Return the cells of a section's table, without its head."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def shown_rooms() -> dict[str, set[str]]:
    return {
        folder.strip("`/"): set() if allowed == "nothing" else set(allowed.split(", "))
        for folder, _, _, allowed in rows("Rooms")
    }


def test_the_table_of_rooms_is_the_rule():
    assert shown_rooms() == ROOMS.MAY_IMPORT
    for folder, package, _, _ in rows("Rooms"):
        assert (ROOT / folder.strip("`/") / "__init__.py").is_file()
        assert package == f"`cispbench.{folder.strip('`/')}`"


@pytest.mark.parametrize("room", shown_rooms())
def test_each_allowed_import_is_used_and_no_other(room):
    used = {
        name.split(".")[1]
        for path in (ROOT / room).rglob("*.py")
        if ROOMS.wing_of(path) not in ROOMS.TOP
        for name in ROOMS.imported(path)
        if name.startswith("cispbench.")
    }
    assert used - {room} == shown_rooms()[room]


@pytest.mark.parametrize(
    ("heading", "wings"), [("Wings of the harness", ROOMS.WINGS), ("Kinds of reports", ROOMS.REPORTS)]
)
def test_the_tables_of_wings_are_the_rule(heading, wings):
    assert [name.strip("`") for name, _ in rows(heading)] == wings


def test_every_public_name_is_on_the_api_page():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = {
        module: sorted(names.split(", "))
        for module, names in re.findall(r"automodule:: cispbench\.(\S+)\n   :members: (.+)", text)
    }
    assert listed == {module: sorted(names) for module, names in ROOMS.PUBLIC.items()}
