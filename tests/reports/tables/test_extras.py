"""Memory and supervision of rows: shown where any row has them, from the records of what was measured here."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cispbench.reports.leaderboard.board import Entry, Leaderboard, load_leaderboard
from cispbench.reports.leaderboard.page import render_pages
from cispbench.reports.leaderboard.paper import paper_data, render_paper
from cispbench.reports.leaderboard.text import leaderboard_markdown
from cispbench.reports.ledger.rows import Filter, show_json, show_text
from cispbench.reports.tables.extras import Extras, extra_columns, published_extras
from cispbench.reports.tables.grid import TableOptions
from cispbench.reports.tables.render import render_store, run_table
from cispbench.results.published_methods import UNKNOWN, method_facts
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed, ExemplarsUsed
from cispbench.results.store import Store
from cispbench.splits.selection import golden_steps
from cispbench.splits.settings import parse_setting

Maker = Callable[..., StepRecord]
LAST = {"setting": "overlapped-15-5", "step": 1}
KEPT = ExemplarsUsed(100, 3 * 2**20)


def write(store: Store, make_record: Maker, name: str, **changes: object) -> None:
    store.write(make_record(**{**LAST, "run_key": name[0] * 16, "method": name, **changes}))


@pytest.fixture
def plain(tmp_path: Path, make_record: Maker) -> Store:
    store = Store(tmp_path)
    write(store, make_record, "mib")
    return store


@pytest.fixture
def mixed(plain: Store, make_record: Maker) -> Store:
    write(plain, make_record, "ssul_m", exemplars=KEPT, supervision=("saliency",))
    write(plain, make_record, "other", seed=1, origin="submitted")
    return plain


def rows(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the headings of the first table of a Markdown text, and its rows by their first cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return cells[0], {row[0]: row for row in cells[2:]}


def test_a_table_has_no_empty_columns(plain: Store) -> None:
    for each in (False, True):
        text = render_store(plain, "markdown", "strict", options=TableOptions(), each=each)
        assert "memory" not in text and "supervision" not in text


def test_a_table_shows_what_its_rows_used(mixed: Store) -> None:
    text = render_store(mixed, "markdown", "strict", options=TableOptions())
    header, found = rows(text)
    assert header[1:4] == ["model", "memory", "supervision"]
    assert found["ssul_m"][1:4] == ["segmenter-tiny", "100 images, 3.0 MiB", "saliency maps"]
    assert found["mib"][2:4] == ["no", "no"]
    # What was not trained here may have used what its record does not name.
    assert found["other (submitted)"][2:4] == ["not known", "not known"]
    header, found = rows(render_store(mixed, "markdown", "strict", options=TableOptions(), each=True))
    assert header[2:5] == ["model", "memory", "supervision"]


def test_data_hold_the_numbers(mixed: Store) -> None:
    cells = {cell["method"]: cell for cell in json.loads(render_store(mixed, "json", "strict"))}
    assert (cells["ssul_m"]["memory"], cells["ssul_m"]["supervision"]) == ("100 images, 3.0 MiB", "saliency maps")
    (run,) = cells["ssul_m"]["runs"]
    assert (run["exemplar_images"], run["exemplar_bytes"], run["supervision"]) == (100, 3 * 2**20, "saliency")
    assert (cells["mib"]["memory"], cells["mib"]["runs"][0]["exemplar_images"]) == ("no", None)
    assert cells["other"]["memory"] is None
    totals = {row["method"]: row for row in csv.DictReader(io.StringIO(render_store(mixed, "csv", "strict")))}
    for line in (cells["ssul_m"], totals["ssul_m"]):
        assert (str(line["exemplar_images"]), str(line["exemplar_bytes"])) == ("100", str(3 * 2**20))
    assert (cells["mib"]["exemplar_bytes"], totals["mib"]["exemplar_bytes"]) == (None, "")
    lines = {row["method"]: row for row in csv.DictReader(io.StringIO(render_store(mixed, "csv", "strict", each=True)))}
    assert (lines["ssul_m"]["exemplar_bytes"], lines["mib"]["exemplar_bytes"]) == (str(3 * 2**20), "")


def test_seeds_of_different_sizes_show_their_range(plain: Store, make_record: Maker) -> None:
    for seed, size in ((0, 2**20), (1, 2**21)):
        write(plain, make_record, f"{seed}", method="ssul_m", seed=seed, exemplars=ExemplarsUsed(100, size))
    _, found = rows(render_store(plain, "markdown", "strict", options=TableOptions()))
    assert found["ssul_m"][2] == "100 images, 1.0 MiB to 2.0 MiB"
    cells = {cell["method"]: cell for cell in json.loads(render_store(plain, "json", "strict"))}
    assert cells["ssul_m"]["exemplar_bytes"] == 2**21  # the most that a run keeps


def entry_of(found: Leaderboard, method: str, dataset: str = "voc", run_by: str = "") -> Entry:
    (entry,) = (
        entry
        for board in found.boards
        if board.group.dataset == dataset and board.scenario == "overlapped"
        for entry in board.entries
        if (entry.method, entry.run_by) == (method, run_by)
    )
    return entry


def test_the_leaderboard_shows_them_of_what_is_measured_and_published(mixed: Store) -> None:
    found = load_leaderboard(mixed)
    here = entry_of(found, "ssul_m", run_by="here")
    assert here.extras == Extras("100 images, 3.0 MiB", "saliency maps")
    assert [badge.why for badge in here.badges if badge.name == "memory"] == [
        "It keeps training images of earlier steps: 100 images, 3.0 MiB."
    ]
    assert {badge.name for badge in here.badges} == {"memory", "extra supervision", "no pre-training"}
    told = dict(here.by_setting["overlapped-15-5"][0].provenance)
    assert (told["Exemplar memory"], told["Extra supervision"]) == ("100 images, 3.0 MiB", "saliency maps")
    assert entry_of(found, "mib", run_by="here").extras == Extras("no", "no")
    assert entry_of(found, "other").extras == Extras(None, None)
    markdown = leaderboard_markdown(found)
    assert re.search(r"\| 100 images, 3.0 MiB +\| saliency maps +\|", markdown)
    assert re.search(r"\| 100 images on VOC, 300 on ADE20K +\| saliency maps +\|", markdown)
    pages = render_pages(found)
    assert '"memory":"100 images, 3.0 MiB"' in pages["mini.html"] and '"keeps":"yes"' in pages["mini.html"]


def test_a_page_without_any_has_no_column(plain: Store) -> None:
    page = render_pages(load_leaderboard(plain))["mini.html"]
    assert 'data-column="memory"' not in page and 'data-column="supervision"' not in page
    assert 'data-column="backbone"' in page


def test_the_table_of_a_run_names_them(make_record: Maker) -> None:
    record = make_record(**LAST, exemplars=KEPT, supervision=("saliency",))
    assert "profile paper, seed 0, memory 100 images, 3.0 MiB, supervision saliency maps |" in run_table([record])
    assert "memory" not in run_table([make_record(**LAST)])


@pytest.mark.parametrize(("method", "named"), [("plop", False), ("ssul_m", True)])
def test_published_rows_beside_measured_ones_say_it_too(
    tmp_path: Path, make_record: Maker, method: str, named: bool
) -> None:
    store, lists = Store(tmp_path), golden_steps(parse_setting("overlapped-15-5"))
    assert lists is not None
    full = DataUsed("full", "f0", lists[1][0], 1449, lists[1][1])
    store.write(make_record(**LAST, method=method, data=full))
    text = render_store(store, "markdown", "strict", options=TableOptions(published=True))
    header, _ = rows(text[text.index("published rows") :])
    assert ("memory" in header, "supervision" in header) == (named, named)
    assert ("100 images on VOC, 300 on ADE20K" in text, "saliency maps" in text) == (named, named)


def test_the_ledger_says_it_below_its_rows() -> None:
    told = " ".join(show_text(Filter(method="ssul-m")).split())
    assert "memory (stored images of earlier steps): SSUL-M: 100 images on VOC, 300 on ADE20K." in told
    assert "supervision (beyond the labels): SSUL-M: saliency maps (on voc)." in told
    several = " ".join(show_text(Filter(setting="overlapped-15-1")).split())
    assert "STAR-M: 50 images on VOC" in several and "CoinSeg: mask proposals of another network" in several
    nothing = show_text(Filter(method="mib"))
    assert "memory (" not in nothing and "supervision (" not in nothing
    by_data_set = {row["dataset"]: row["supervision"] for row in json.loads(show_json(Filter(method="ssul")))}
    assert by_data_set == {"voc": "saliency maps", "ade": "no"}


def test_the_papers_table_has_them(tmp_path: Path) -> None:
    found = load_leaderboard(Store(tmp_path))
    header, _ = rows(render_paper(found, "ssul-m", "markdown"))
    assert header[-2:] == ["memory", "supervision"]
    header, _ = rows(render_paper(found, "mib", "markdown"))
    assert header[-1] == "status of all"
    assert {row["memory"] for row in paper_data(found, "dkd-m")} == {"100 images on VOC, 300 on ADE20K"}


def test_facts_count_on_the_data_set_they_are_of() -> None:
    ssul = method_facts()["SSUL-M"]
    assert published_extras(ssul, "voc") == Extras("100 images on VOC, 300 on ADE20K", "saliency maps")
    assert published_extras(ssul, "ade").supervision == "no"
    assert published_extras(UNKNOWN, "voc") == Extras(None, None)
    assert extra_columns([Extras("no", None), Extras("no", "maps")]) == (["supervision"], [["not known"], ["maps"]])
    assert extra_columns([Extras("no", None)] * 2) == ([], [[], []])
    assert replace(ssul, supervision=None).extra_supervision("ade") is None
