"""The ledger is the first list of published numbers, brought into its form by the rules that are kept beside it."""

from __future__ import annotations

import gzip
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cispbench.results import ledger
from cispbench.results.duplicates import duplicates
from cispbench.results.ledger import ledger_rows

HERE = Path(__file__).parent / "ledger_migration"
FILES = Path(ledger.__file__).parent / "reported"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(HERE / "bring_in.py"))


def old_rows() -> list[dict[str, Any]]:
    with gzip.open(HERE / "reported.yaml.gz", "rt") as file:
        return list(yaml.safe_load(file))


def additions() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((HERE / "additions.yaml").read_text())
    return content


def test_the_script_gives_the_files(script: dict[str, Any]) -> None:
    files = script["brought_in"]()
    assert {f"{name}.yaml" for name in files} == {path.name for path in FILES.glob("*.yaml")}
    for name, rows in files.items():
        # Rows that came later stand below.
        assert (FILES / f"{name}.yaml").read_text().startswith(script["text_of"](name, rows))


@pytest.mark.parametrize("name", ["reported.yaml", "reported-additions.yaml"])
def test_the_first_list_is_that_of_the_reference(shared: Path, name: str) -> None:
    ours = old_rows() if name == "reported.yaml" else additions()
    assert ours == yaml.safe_load((shared / name).read_text())


def test_every_number_of_the_first_list_and_the_additions_stands_in_the_ledger(script: dict[str, Any]) -> None:
    """Every old row is found by its document and place, its numbers as printed, rounded, or said to differ."""
    listed: dict[tuple[str, ...], list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for path in FILES.glob("*.yaml"):
        for row in yaml.safe_load(path.read_text()):
            for source in (row, *row.get("also", [])):
                key = (row["setting"], row["method"], row["backbone"], source["document"], source["place"])
                listed.setdefault(key, []).append((row, source))
    entries = old_rows() + additions()["rows"]
    assert len(entries) == 851
    for entry in entries:
        key = (entry["setting"], entry["method"], script["network_of"](entry), *script["place_of"](entry["source"]))
        assert any(_prints(row, source, entry) for row, source in listed[key]), entry


def _prints(row: dict[str, Any], source: dict[str, Any], entry: dict[str, Any]) -> bool:
    for name in ("old", "new", "all"):
        there = source.get("prints", {}).get(name, row[name])
        if entry[name] is not None and (there is None or not _is_or_rounds_to(there, entry[name])):
            return False
    return True


def _is_or_rounds_to(number: float, printed: float) -> bool:
    """A number that was cut, as 70.0 of 70.09, is another one than the rounded 70.1."""
    fewer_digits = len(repr(printed)) < len(repr(number))
    return number == printed or (fewer_digits and abs(number - printed) <= 0.05 + 1e-9)


@pytest.mark.parametrize(
    ("method", "document"), [("Incrementer", "select26"), ("Joint", "dkd22"), ("Joint", "reminder22")]
)
def test_who_ran_a_row_is_a_guess_where_its_document_does_not_say_it(method: str, document: str) -> None:
    """SELECT's dagger names two papers, of which either may have run Incrementer; two tables say nothing of Joint."""
    rows = [row for row in ledger_rows() if (row["method"], row["document"]) == (method, document) and row["run_by"]]
    assert rows
    assert all(row["run_by_inferred"] for row in rows)


def test_a_note_speaks_of_a_mark_only_where_the_first_list_does() -> None:
    marked = {(e["method"], e["setting"], e["old"]) for e in old_rows() if "dagger" in str(e.get("note"))}
    told = [row for row in ledger_rows() if "dagger" in str([row["note"], *row["also"]])]
    assert len(told) > 30
    assert {(row["method"], row["setting"], row["old"]) for row in told} <= marked


def test_a_setting_that_no_document_prints_is_inferred() -> None:
    """REMINDER's table does not say disjoint or overlapped; STAR's README says disjoint where its command does not."""
    rows = {(row["document"], row["method"], row["setting"]): row for row in ledger_rows() if row["all"] is not None}
    for method in ("MiB", "SDR", "PLOP", "Joint"):
        assert rows["reminder22", method, "overlapped-15-1"]["assignment"].startswith("inferred (the table does not")
    assert rows["star23", "STAR", "overlapped-100-50"]["assignment"].startswith("inferred (README heads")
    # Others print REMINDER's own numbers in their tables of overlapped settings.
    own = rows["reminder22", "REMINDER", "overlapped-15-1"]
    assert own["also"] and own["assignment"] is None


def test_who_ran_a_row_is_known_where_nobody_else_can_have() -> None:
    rows = [row for row in ledger_rows() if row["document"] == "mib20"]
    assert rows
    assert not any(row["run_by_inferred"] for row in rows)


def test_the_first_list_held_numbers_twice(script: dict[str, Any]) -> None:
    """The search for duplicates finds them where they are known to be, and in great number."""
    pairs = duplicates([script["_row"](entry) for entry in old_rows()])
    assert len(pairs) > 100
    adapter = [pair for pair in pairs if (pair[0]["method"], pair[0]["setting"]) == ("Adapter", "overlapped-15-1")]
    assert [{row["document"] for row in pair} for pair in adapter] == [{"prkr26", "select26"}]


def test_the_corrections_of_networks_are_in() -> None:
    networks: dict[str, set[str]] = {}
    for row in ledger_rows():
        networks.setdefault(row["method"], set()).add(row["backbone"])
    for method in ("SimCIS", "ECLIPSE", "CoMBO", "CoMasTRe"):
        assert networks[method] == {"ResNet-101 Mask2Former"}
    combo = [row for row in ledger_rows() if row["method"] == "CoMBO"]
    assert all("probably" in row["note"] for row in combo)


def test_the_numbers_of_adapter_stand_once() -> None:
    rows = [row for row in ledger_rows() if (row["method"], row["setting"]) == ("Adapter", "overlapped-15-1")]
    (row,) = rows
    assert [row[name] for name in ("old", "new", "all")] == [79.9, 51.9, 73.2]
    assert {"PRKR" in row["source"], any("SELECT" in text for text in row["also"])} == {True}
