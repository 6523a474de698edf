"""The documents of the ledger, and the kind of every row by the facts that it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cispbench.results import documents as module
from cispbench.results.documents import KINDS, NOBODYS, documents, in_runners_document, kind_of
from cispbench.results.ledger import ledger_rows, load_reported
from cispbench.results.published_methods import method_facts
from cispbench.splits.errors import StoreError

FILES = Path(module.__file__).parent


def raw_rows() -> list[dict[str, Any]]:
    """Return the rows as their files hold them, in the order of ``ledger_rows``."""
    return [row for path in sorted((FILES / "reported").glob("*.yaml")) for row in yaml.safe_load(path.read_text())]


def expected_kind(row: dict[str, Any]) -> str:
    """Derive a row's kind from the two files alone, written down once more from the definition."""
    entries = yaml.safe_load((FILES / "documents.yaml").read_text())
    if row["run_by"] is None:
        return "not known"
    if row["method"] not in ("FT", "Joint") and row["method"] not in entries[row["run_by"]].get("proposes", []):
        return "re-run"
    if row["run_by"] in (row["document"], entries[row["document"]].get("about")):
        return "own"
    return "quoted"


def test_the_kind_of_every_row_is_that_of_the_definition() -> None:
    found, raw = ledger_rows(), raw_rows()
    assert len(found) == len(raw) > 600
    by_facts = {(row["method"], row["document"], row["run_by"]): row for row in raw}
    expected = {facts: expected_kind(row) for facts, row in by_facts.items()}
    assert [row["kind"] for row in found] == [expected[row["method"], row["document"], row["run_by"]] for row in raw]
    assert set(expected.values()) == set(KINDS)


def test_who_ran_a_row_is_named_or_none() -> None:
    for row, raw in zip(ledger_rows(), raw_rows(), strict=True):
        assert row["run_by"] == (documents()[raw["run_by"]].runners if raw["run_by"] else None)
        assert (row["run_by"] is None) == (row["kind"] == "not known")
        assert row["run_by_inferred"] == raw.get("run_by_inferred", False)
        # A document of a method's authors is theirs; only what is nobody's may be another's run in any document.
        assert not (row["run_by_inferred"] and row["kind"] == "own") or row["method"] in NOBODYS


def test_numbers_that_documents_contradict_are_ascribed_to_nobody() -> None:
    """Where two documents quote different numbers without a word, at most one can be the method's own."""
    inferred = [row for row in ledger_rows() if row["run_by_inferred"] and row["old"] is not None]
    places = Counter((row["setting"], row["method"], row["backbone"], row["run_by"]) for row in inferred)
    assert len(places) > 150 and set(places.values()) == {1}
    lgkd = [row for row in ledger_rows() if (row["method"], row["setting"]) == ("LGKD+PLOP", "overlapped-15-1")]
    assert {row["kind"] for row in lgkd} == {"not known"} and {row["old"] for row in lgkd} == {69.3, 70.6}


@pytest.mark.parametrize(
    ("method", "document", "run_by", "kind"),
    [
        ("MBS", "mbs24", "mbs24", "own"),
        ("MBS", "mbs-page", "mbs24", "own"),
        ("MBS", "select26", "mbs24", "quoted"),
        ("MBS", "select26", "select26", "re-run"),
        ("MBS", "select26", None, "not known"),
        ("MBS", "prkr26", "select26", "re-run"),
        # Who proposes what is put on top of a method proposes the whole.
        ("MiB+NeST", "select26", "nest24", "quoted"),
        ("MiB+NeST", "nest24", "mib20", "re-run"),
        ("UCD+PLOP", "ucd22", "ucd22", "own"),
        ("UCD+PLOP", "cfsseg25", "plop21", "re-run"),
        ("SSUL-M", "ssul21", "ssul21", "own"),
        # FT and Joint are nobody's.
        ("Joint", "mib20", "mib20", "own"),
        ("Joint", "select26", "mib20", "quoted"),
        ("FT", "cfsseg25", None, "not known"),
        ("SATS", "sats-issue-2", "sats-issue-2", "re-run"),
    ],
)
def test_kinds_by_hand(method: str, document: str, run_by: str | None, kind: str) -> None:
    assert kind_of(method, document, run_by) == kind


@pytest.mark.parametrize(
    ("method", "document", "backbone", "kinds", "run_by", "inferred"),
    [
        ("SELECT", "select26", "ViT-B/16 (Segmenter)", {"own"}, "SELECT authors", False),
        ("PRKR-DKD", "prkr26", "ViT-B/16 (Segmenter)", {"own"}, "PRKR authors", False),
        ("MiB", "sats23", "SegFormer-B2", {"re-run"}, "SATS authors", False),
        ("MiB", "plop21", "ResNet-101 DeepLabV3", {"re-run"}, "PLOP authors", False),
        ("MBS", "select26", "ViT-B/16 (Segmenter)", {"re-run"}, "SELECT authors", False),
        ("MBS", "prkr26", "ViT-B/16 (Segmenter)", {"re-run"}, "PRKR authors", False),
        ("Incrementer", "select26", "ViT-B/16 (Segmenter)", {"quoted"}, "Incrementer authors", True),
        ("Joint", "dkd22", "ResNet-101 DeepLabV3", {"own"}, "DKD authors", True),
        ("Joint", "mib20", "ResNet-101 DeepLabV3", {"own"}, "MiB authors", False),
        ("CoGaMiD", "select26", "Swin-B", {"quoted"}, "CoGaMiD authors", True),
        ("MiB", "select26", "ViT-B/16 (Segmenter)", {"not known"}, None, False),
        ("MiB", "prkr26", "ViT-B/16 (Segmenter)", {"not known"}, None, False),
        ("SATS", "sats-issue-2", "SegFormer-B2", {"re-run"}, "a user of SATS's code", False),
    ],
)  # fmt: skip
def test_what_the_tables_say_of_their_rows(
    method: str, document: str, backbone: str, kinds: set[str], run_by: str | None, inferred: bool
) -> None:
    rows = [
        row
        for row in ledger_rows()
        if (row["method"], row["document"], row["backbone"]) == (method, document, backbone)
    ]
    assert rows
    assert {row["kind"] for row in rows} == kinds
    assert {(row["run_by"], row["run_by_inferred"]) for row in rows} == {(run_by, inferred)}


OWN_OF_MBS = {
    "overlapped-15-5": 82.6, "overlapped-15-1": 80.6, "overlapped-10-1": 77.19, "overlapped-5-3": 78.1,
    "disjoint-19-1": 82.8, "disjoint-15-5": 79.0, "disjoint-15-1": 78.1,
    "overlapped-100-50": 45.7, "overlapped-100-10": 44.5, "overlapped-100-5": 42.8, "overlapped-50-50": 45.4,
}  # fmt: skip


def test_the_numbers_of_the_authors_of_mbs_are_their_own_each_with_its_assignment() -> None:
    own = [row for row in ledger_rows() if row["method"] == "MBS" and row["run_by"] == "MBS authors"]
    assert {row["setting"]: row["all"] for row in own} == OWN_OF_MBS and len(own) == len(OWN_OF_MBS)
    assert {row["kind"] for row in own} == {"own"}
    assigned = Counter(row["assignment"].partition(" ")[0] for row in own)
    assert assigned == {"direct": 3, "forced": 3, "inferred": 5}
    for row in own:
        assert "https://arxiv.org/abs/2407.11859" in row["links"]
    for setting in ("overlapped-15-1", "overlapped-100-5"):
        (row,) = (row for row in own if row["setting"] == setting)
        assert any("review of SELECT" in text for text in row["also"])


def test_every_method_is_proposed_by_one_document_or_is_nobodys() -> None:
    proposed = Counter(method for entry in documents().values() for method in entry.proposes)
    assert set(proposed.values()) == {1}
    assert set(proposed) | set(NOBODYS) >= {row["method"] for row in ledger_rows()}
    assert not set(proposed) & set(NOBODYS)


def test_documents_are_told_apart_and_used() -> None:
    found = documents()
    assert len({entry.runners for entry in found.values()}) == len(found)
    cited = {name for row in raw_rows() for name in (row["document"], row["run_by"])} - {None}
    cited |= {other["document"] for row in raw_rows() for other in row.get("also", [])}
    assert cited <= set(found)
    assert {name for name, entry in found.items() if not entry.proposes} <= cited


def test_links_are_addresses_of_the_document_each_once() -> None:
    for entry in documents().values():
        assert len(set(entry.links)) == len(entry.links)
        assert all(link.startswith("https://") and " " not in link for link in entry.links)
    assert documents()["mbs24"].links == (
        "https://arxiv.org/abs/2407.11859", "https://github.com/RoadoneP/ECCV2024_MBS"
    )  # fmt: skip
    assert documents()["prkr26"].links == ("https://openreview.net/forum?id=9qbKOaF8YJ",)
    frame = load_reported()
    select = frame[(frame["method"] == "MBS") & (frame["document"] == "select26")]
    assert {links[0] for links in select["links"]} == {"https://arxiv.org/abs/2608.30281"}


def test_a_withdrawn_document_is_called_so_beside_its_rows() -> None:
    rows = [row for row in ledger_rows() if row["document"] == "prkr26"]
    assert len(rows) > 100
    assert all("withdrawn" in row["source"] for row in rows)


def test_a_page_is_as_good_as_the_document_that_it_is_about() -> None:
    assert in_runners_document("mbs-page", "MBS authors")
    assert not in_runners_document("mbs-page", "SELECT authors")
    assert not in_runners_document("mbs-page", None)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(module, "_PATH", tmp_path / "documents.yaml")
    documents.cache_clear()
    yield tmp_path / "documents.yaml"
    documents.cache_clear()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{shrt: X}", ["unknown key 'shrt'", "'short'"]),
        ("{short: X, arxiv: '2407.118'}", ["arxiv is '2407.118'"]),
        ("{short: X, openreview: forum?id=9qbKOaF8YJ}", ["openreview is"]),
        ("{short: X, repository: https://github.com/a/b}", ["repository is"]),
        ("{short: X, urls: [www.example.org]}", ["'www.example.org' is no link"]),
        ("{short: X, status: gone}", ["status is 'gone'", "withdrawn"]),
        ("{short: X, about: y}", ["about is 'y'"]),
    ],
)
def test_a_broken_document_is_named(broken: Path, entry: str, words: list[str]) -> None:
    broken.write_text(f"x: {entry}\n")
    with pytest.raises(StoreError) as caught:
        documents()
    for word in [f"{broken} x", *words]:
        assert word in str(caught.value)


def test_the_documentation_prints_the_one_definition_of_the_kinds() -> None:
    text = (FILES.parent / "docs" / "reading-leaderboard.md").read_text()
    for kind, meaning in KINDS.items():
        assert f"| {kind} | {meaning} |" in text


def test_the_facts_of_a_method_are_of_the_year_of_its_paper() -> None:
    papers = {method: entry for entry in documents().values() for method in entry.proposes}
    methods = {row["method"] for row in ledger_rows()}
    assert methods - set(NOBODYS) <= set(papers)
    assert methods == set(method_facts())
    for method, facts in method_facts().items():
        assert facts.year == (papers[method].year if method in papers else None)
