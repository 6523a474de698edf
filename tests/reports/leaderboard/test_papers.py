"""The paper's table: what is known of one method's numbers in one view; its own numbers in one row of each board."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cispbench.harness.cli import main
from cispbench.reports.leaderboard.board import Leaderboard, load_leaderboard
from cispbench.reports.leaderboard.page import papers_page, render_pages
from cispbench.reports.leaderboard.paper import paper_data, render_paper
from cispbench.reports.leaderboard.text import leaderboard_markdown
from cispbench.results import ledger
from cispbench.results.documents import document_links, documents
from cispbench.results.ledger import ledger_rows
from cispbench.results.store import Store
from cispbench.splits.errors import UsageError

# MBS's own numbers (ECCV 2024), mIoU of all classes, by board and setting; True: the setting is inferred.
OWN: dict[str, dict[str, tuple[str, bool]]] = {
    "voc-overlapped": {
        "overlapped-15-5": ("82.6", False), "overlapped-15-1": ("80.6", False), "overlapped-10-1": ("77.19", True),
        "overlapped-5-3": ("78.1", True),
    },
    "voc-disjoint": {
        "disjoint-19-1": ("82.8", False), "disjoint-15-5": ("79.0", False), "disjoint-15-1": ("78.1", True),
    },
    "ade-overlapped": {
        "overlapped-100-50": ("45.7", True), "overlapped-100-10": ("44.5", False), "overlapped-100-5": ("42.8", False),
        "overlapped-50-50": ("45.4", True),
    },
}  # fmt: skip
VIT = "ViT-B/16 (Segmenter)"


@pytest.fixture(scope="module")
def ledger_alone(tmp_path_factory: pytest.TempPathFactory) -> Leaderboard:
    return load_leaderboard(Store(tmp_path_factory.mktemp("nothing")))


def table(*words: str) -> Result:
    return CliRunner().invoke(main, ["table", "--paper", *words])


def data_block(page: str) -> Any:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


@pytest.mark.parametrize("name", OWN)
def test_the_own_numbers_of_a_method_stand_in_one_row_of_the_page(ledger_alone: Leaderboard, name: str) -> None:
    data = data_block(render_pages(ledger_alone)["index.html"])
    (board,) = (board for board in data["boards"] if board["id"] == name)
    (row,) = (row for row in board["rows"] if row["method"] == "MBS" and row["kind"] == "own")
    assert row["backbone"] == VIT and row["run_by"] == "MBS authors"
    shown = {
        board["settings"][int(place)]: (numbers[board["total"]][0], bool(numbers[board["total"]][5][0]))
        for place, numbers in row["places"].items()
    }
    assert shown == OWN[name]


@pytest.mark.parametrize("position", range(len(OWN)))
def test_the_own_numbers_of_a_method_stand_in_one_row_of_the_text(ledger_alone: Leaderboard, position: int) -> None:
    section = leaderboard_markdown(ledger_alone).split("\n### ")[1 + position]
    headers, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")
    ]
    (row,) = (dict(zip(headers, row, strict=True)) for row in rows if row[0] == "MBS" and row[3] == "own")
    shown = {name.removesuffix(" all"): text.split() for name, text in row.items() if name.endswith(" all") and text}
    assert {name: (text[0], "~" in text) for name, text in shown.items()} == OWN[[*OWN][position]]


def test_no_method_has_two_rows_of_one_network_and_runner(ledger_alone: Leaderboard) -> None:
    for board in ledger_alone.boards:
        known = [(entry.method, entry.backbone, entry.run_by) for entry in board.entries if entry.run_by]
        assert len(known) == len(set(known))


def test_the_table_holds_every_row_of_the_ledger_once(ledger_alone: Leaderboard) -> None:
    rows = [row for row in ledger_rows() if row["method"] == "MBS"]
    wanted = sorted((row["setting"], row["kind"], str(row["old"]), str(row["new"]), str(row["all"])) for row in rows)
    found = paper_data(ledger_alone, "mbs")
    assert wanted == sorted(
        (row["setting"], row["kind"], str(row["old"]), str(row["new"]), str(row["all"])) for row in found
    )
    assert {row["kind_inferred"] for row in found} == {row["run_by_inferred"] for row in rows}
    assert {row["run_by"] for row in found} == {"MBS authors", "SELECT authors", "PRKR authors"}


def test_what_others_got_is_compared_with_the_own_number(ledger_alone: Leaderboard) -> None:
    found = {(row["setting"], row["kind"]): row for row in paper_data(ledger_alone, "MBS")}
    row = found["overlapped-15-1", "own"]
    assert row["status"] == "re-run by others: -1.6, -2.6" and row["differences"] == [-1.6, -2.6]
    assert "SELECT authors ran it: 79.0" in row["why"] and "PRKR authors ran it: 78.0" in row["why"]
    assert "https://arxiv.org/abs/2407.11859" in row["links"].split()
    # The table that prints 58.6 contradicts itself there, so that only the other one is compared: 42.9 - 45.4.
    row = found["overlapped-50-50", "own"]
    assert row["differences"] == [-2.5] and "58.6" in row["why"] and "not compared" in row["why"]


def test_a_measured_run_stands_among_its_papers_numbers(mixed_store: Store) -> None:
    rows = [row for row in paper_data(load_leaderboard(mixed_store), "mib") if row["kind"] == "measured"]
    background = 100 * 100_000 / (100_000 + 15 * (1000 - 460) + 5 * (1000 - 130))
    assert [(row["setting"], row["network"], row["run_by"], row["all"]) for row in rows] == [
        ("disjoint-15-1", "ResNet-101 DeepLabV3", "here", pytest.approx((15 * 46 + 5 * 13 + background) / 21))
    ]
    assert rows[0]["run_keys"] and rows[0]["all_background"] is True and rows[0]["old_background"] is False


def test_the_network_of_the_own_numbers_comes_first(ledger_alone: Leaderboard) -> None:
    networks = list(dict.fromkeys(row["network"] for row in paper_data(ledger_alone, "plop")))
    assert networks[0] == "ResNet-101 DeepLabV3" and len(networks) > 1


def test_it_fits_a_hundred_columns_for_every_method(ledger_alone: Leaderboard) -> None:
    for method in sorted({row["method"] for row in ledger_rows()}):
        text = render_paper(ledger_alone, method, "terminal")
        assert max(map(len, text.splitlines())) <= 100, method


def test_every_format_holds_the_numbers_and_the_links(ledger_alone: Leaderboard) -> None:
    for form in ("terminal", "markdown", "html", "latex", "csv", "json"):
        text = render_paper(ledger_alone, "mbs", form)
        assert all(number in text for numbers in OWN.values() for number, _ in numbers.values()), form
        assert "RoadoneP/ECCV2024" in text.replace("\\_", "_"), form
    html = render_paper(ledger_alone, "mbs", "html")
    assert '<a href="https://github.com/RoadoneP/ECCV2024_MBS" rel="noopener noreferrer">' in html
    (first, *_) = csv.DictReader(io.StringIO(render_paper(ledger_alone, "mbs", "csv")))
    assert first["method"] == "MBS" and first["setting"] == "overlapped-19-1" and float(first["all"]) == 80.8


def document_of_source() -> dict[str, str]:
    """The document of each source, by the text that tables cite it with."""
    files = sorted((Path(ledger.__file__).parent / "reported").glob("*.yaml"))
    raw = [row for path in files for row in yaml.safe_load(path.read_text(encoding="utf-8"))]
    return {row["source"]: entry["document"] for row, entry in zip(ledger_rows(), raw, strict=True)}


def test_a_source_has_the_links_of_its_own_document_and_stands_once(ledger_alone: Leaderboard) -> None:
    """Not those of other documents that print the number again: a reader would look for its table there."""
    known = document_of_source()
    texts = [render_paper(ledger_alone, name, "markdown") for name in sorted({row["method"] for row in ledger_rows()})]
    for text in [*texts, *re.split("^#+ ", leaderboard_markdown(ledger_alone), flags=re.MULTILINE)]:
        for section in re.split("^### ", text, flags=re.MULTILINE):
            listed = re.findall(r"^\[\d+\] (.*?)(?:: (https.*))?$", section, re.MULTILINE)
            assert len({source for source, _ in listed}) == len(listed)
            for source, links in listed:
                assert tuple(links.split()) == document_links(known[source])
    assert document_links("mbs-page") == documents()["mbs24"].links


def test_the_command_names_what_it_does_not_know_or_cannot_combine() -> None:
    assert "re-run by others: -1.6, -2.6" in table("mbs", "--format", "terminal").output
    unknown = table("msb")
    assert unknown.exit_code == 2 and "the ledger holds no method 'msb'" in unknown.output and "'MBS'" in unknown.output
    for words in (["--columns", "all"], ["--compare-protocols"], ["--runs"], ["--method", "mib"]):
        refused = table("mbs", *words)
        assert refused.exit_code == 2 and f"{words[0]} does not go with --paper" in refused.output


def test_an_unknown_method_is_a_mistake_of_the_user(ledger_alone: Leaderboard) -> None:
    with pytest.raises(UsageError, match="the ledger holds no method"):
        render_paper(ledger_alone, "nothing", "json")


def test_one_page_has_the_tables_of_all_methods(ledger_alone: Leaderboard, tmp_path: Path) -> None:
    page = papers_page(ledger_alone)
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    methods = {row["method"] for row in ledger_rows()}
    assert {heading.split(", ")[0] for heading in headings} == methods
    assert 'href="papers.html"' in render_pages(ledger_alone)["index.html"] and 'href="index.html"' in page
    ids = re.findall(r'<section id="(\d+)">', page)
    assert re.findall(r'<a href="#(\d+)">', page) == ids and len(ids) == len(headings)


@pytest.mark.parametrize("columns", ["100", "80"])
def test_the_table_of_a_paper_is_one_table_on_a_terminal(
    ledger_alone: Leaderboard, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    """Long texts are wrapped; a status apart from its number would have to be looked up."""
    monkeypatch.setenv("COLUMNS", columns)
    text = render_paper(ledger_alone, "mbs", "terminal")
    assert len(re.findall("^setting +run by +kind +old +new +all +status of all$", text, re.MULTILINE)) == 1
    assert max(len(line) for line in text.splitlines() if "https://" not in line) <= int(columns)


def test_a_note_names_all_documents_whose_links_it_has(ledger_alone: Leaderboard) -> None:
    notes = [line for line in render_paper(ledger_alone, "mib", "markdown").splitlines() if "2608.30281" in line]
    assert notes and all("SELECT" in note for note in notes)
