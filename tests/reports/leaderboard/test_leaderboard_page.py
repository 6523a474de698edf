"""The leaderboard's page in Chromium: sorted, filtered and opened by mouse and keyboard, silent, and alone on disk."""

from __future__ import annotations

import csv
import json
import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cispbench.reports.leaderboard.board import load_leaderboard
from cispbench.reports.leaderboard.page import write_leaderboard
from cispbench.reports.tables.runs import SCORES, Group
from cispbench.results.store import Store

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.browser
SCRIPT = "<script>alert(1)</script>"
COLUMNS = {
    "Network": "backbone", "Run by": "run_by", "Kind": "kind", "Year": "year", "Memory": "memory",
    "Supervision": "supervision",
}  # fmt: skip
SORTED = "th[aria-sort='ascending'], th[aria-sort='descending']"


@pytest.fixture(scope="module")
def folder(mixed_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    write_leaderboard(load_leaderboard(mixed_store), out)
    return out / "leaderboard"


@pytest.fixture
def page(browser: Chrome, folder: Path) -> Chrome:
    """The first page, fresh."""
    browser.get("about:blank")
    browser.get((folder / "index.html").as_uri())
    return browser


def find(page: Chrome, selector: str) -> list[WebElement]:
    """Those elements of the board on show that a selector names."""
    return page.find_elements("css selector", f"section.board:not([hidden]) {selector}")


def texts(page: Chrome, selector: str) -> list[str]:
    """The texts of those elements, at one go."""
    return page.execute_script(
        """const board = document.querySelector("section.board:not([hidden])");
        return [...board.querySelectorAll(arguments[0])].map((node) => node.textContent);""",
        selector,
    )


def column(page: Chrome, name: str) -> list[float]:
    """The numbers below the heading of that name, from top to bottom, rows without one left out."""
    texts = page.execute_script(
        """const board = document.querySelector("section.board:not([hidden])");
        const head = board.querySelector(`button[aria-label='${arguments[0]}']`).parentNode;
        const names = [...head.parentNode.children];
        return [...head.closest("table").tBodies[0].rows].map((row) =>
          row.querySelectorAll("td.number")[names.indexOf(head)].querySelector(".figure")?.textContent ?? null);""",
        name,
    )
    known = [text is not None for text in texts]
    assert known == sorted(known, reverse=True), "rows without a number come last"
    return [float(text) for text in texts if text is not None]


def methods(page: Chrome) -> list[str]:
    return texts(page, "tbody th .name")


def press(page: Chrome, key: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(page).send_keys(key).perform()


def test_numbers_sort_by_click_and_by_keyboard(page: Chrome) -> None:
    from selenium.webdriver.common.keys import Keys

    (heading,) = find(page, "button[aria-label='overlapped-15-5 old']")
    head = heading.find_element("xpath", "..")
    assert head.get_attribute("aria-sort") == "none"
    assert [th.text.strip() for th in find(page, SORTED)] == ["all"]  # of 15-1, where most numbers are
    values = column(page, "overlapped-15-1 all")
    assert len(values) > 50 and values == sorted(values, reverse=True)
    heading.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert len(find(page, SORTED)) == 1
    values = column(page, "overlapped-15-5 old")
    assert len(values) > 30 and values == sorted(values, reverse=True)
    heading.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "overlapped-15-5 old") == sorted(values)
    assert page.switch_to.active_element == heading
    assert "overlapped-15-5 old, ascending" in page.find_element("id", "status").text


def test_words_sort(page: Chrome) -> None:
    for place, name in enumerate(COLUMNS):
        (heading,) = find(page, f"th[data-column={COLUMNS[name]}] button")
        page.execute_script("arguments[0].click()", heading)
        shown = texts(page, f"tbody td.about-row:nth-last-child({6 - place})")
        # As the page does, "50 images" stands before "100 images".
        known = [re.sub(r"\d+", lambda found: f"{found[0]:>4}", text.lower()) for text in shown if text != "–"]
        assert known == sorted(known, reverse=name == "Year") and len(set(known)) > 1
        assert shown == [text for text in shown if text != "–"] + ["–"] * shown.count("–")
        assert [head.text.strip() for head in find(page, SORTED)] == [name]


def test_methods_sort(page: Chrome) -> None:
    find(page, "th[data-column=method] button")[0].click()
    shown = [name.lower() for name in methods(page) if name[0].isalpha()]
    plain = [name.replace("-", "").replace("+", "") for name in shown]
    assert [name[0] for name in plain] == sorted(name[0] for name in plain)


def test_rows_are_filtered_and_ranked_among_those_shown(page: Chrome) -> None:
    form, status = page.find_element("id", "filter"), page.find_element("id", "status")
    everything = len(methods(page))
    form.find_element("name", "method").send_keys("MiB")
    assert 0 < len(methods(page)) < everything and all("mib" in name.lower() for name in methods(page))
    assert status.text.startswith(f"{len(methods(page))} of {everything} rows")
    form.find_element("css selector", "[name=background] option[value='1']").click()
    best = set(texts(page, "td.best .figure"))
    assert str(max(column(page, "overlapped-15-1 all"))) in best
    form.find_element("css selector", "button[type=reset]").click()
    assert len(methods(page)) == everything
    form.find_element("css selector", "[name=memory] option[value=yes]").click()
    kept = set(texts(page, "tbody td.about-row:nth-last-child(2)"))
    assert "100 images on VOC, 300 on ADE20K" in kept and not kept & {"no", "–"}
    assert "SSUL-M" in methods(page) and "MiB" not in methods(page)
    form.find_element("css selector", "[name=memory] option[value='']").click()
    form.find_element("xpath", ".//select[@name='year']/option[.='2021']").click()
    assert {"PLOP", "SDR"} <= set(methods(page)) and "MiB" not in methods(page)
    form.find_element("css selector", "button[type=reset]").click()
    for kind in ("own", "quoted", "re-run", "not known"):
        form.find_element("css selector", f"[value='{kind}']").click()
    assert methods(page) == [SCRIPT]
    form.find_element("css selector", "button[type=reset]").click()
    form.find_element("xpath", ".//select[@name='backbone']/option[.='Swin-B']").click()
    assert set(texts(page, "tbody td.about-row:nth-last-child(6)")) == {"Swin-B"}


def test_numbers_that_count_the_background_alike_are_shown_alone(page: Chrome) -> None:
    form = page.find_element("id", "filter")
    marks = {"1": "+b", "0": "-b", "2": "b?"}
    for choice, mark in marks.items():
        form.find_element("css selector", f"[name=background] option[value='{choice}']").click()
        shown = set(texts(page, "td.number[data-score='2'] .counted"))
        assert shown == {mark} and methods(page)
    assert "MBS" in methods(page) and "↻-1.6, -2.6" in texts(page, "td.re-run-by-others .mark")


def test_the_address_holds_the_view_and_opens_it_again(page: Chrome, folder: Path) -> None:
    form = page.find_element("id", "filter")
    assert page.execute_script("return location.hash") == "#voc-overlapped"
    form.find_element("name", "method").send_keys("MBS")
    form.find_element("css selector", "[value='quoted']").click()
    form.find_element("css selector", "[name=memory] option[value=no]").click()
    find(page, ".setting option")[2].click()
    find(page, "button[aria-label='overlapped-15-5 new']")[0].click()
    find(page, "button[aria-label='overlapped-15-5 new']")[0].click()
    sent, rows, status = page.current_url, texts(page, "tbody tr"), page.find_element("id", "status").text
    assert "#voc-overlapped&" in sent and "setting=overlapped-15-5" in sent and "method=mbs" in sent
    assert len(rows) == 3 and "overlapped-15-5 new, ascending" in status
    page.get("about:blank")
    page.get(sent)
    assert (texts(page, "tbody tr"), page.find_element("id", "status").text) == (rows, status)
    assert [head.text for head in find(page, "thead .over") if head.is_displayed()] == ["15-5"]
    assert not page.find_element("css selector", "[value='quoted']").is_selected()
    assert page.current_url == sent
    # Another board keeps the filters; a hash that means nothing shows the first board.
    page.find_elements("css selector", "nav.boards a")[1].click()
    assert set(methods(page)) == {"MBS"} and "method=mbs" in page.current_url
    page.get("about:blank")
    page.get((folder / "index.html").as_uri() + "#nothing&setting=<b>&sort=x%20y&kind=")
    assert methods(page) == [] and "by overlapped-15-1 all" in page.find_element("id", "status").text


def saved(page: Chrome, form: str, folder: Path) -> list[dict[str, Any]]:
    """What a click on the board's button for CSV or JSON saves into a folder."""
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    find(page, f".download[data-form={form}]")[0].click()
    for _ in range(100):
        if files := list(folder.glob(f"*.{form}")):
            text = files[0].read_text(encoding="utf-8")
            return list(json.loads(text)) if form == "json" else list(csv.DictReader(text.splitlines()))
        time.sleep(0.1)
    raise AssertionError("nothing was saved")


@pytest.mark.parametrize("form", ["csv", "json"])
def test_what_is_shown_is_saved(page: Chrome, form: str, tmp_path: Path) -> None:
    page.find_element("name", "method").send_keys("mbs")
    find(page, ".setting option")[3].click()  # 15-1
    rows = saved(page, form, tmp_path)
    shown = [float(figure) for figure in texts(page, "tbody .figure")]
    assert [float(row["value"]) for row in rows] == shown and len(shown) == 7
    (own,) = (row for row in rows if row["kind"] == "own")
    assert float(own["value"]) == 80.6 and own["status"] == "re-run by others: -1.6, -2.6"
    assert own["setting"] == "overlapped-15-1" and own["network"] == "ViT-B/16 (Segmenter)"
    assert own["background"] in (None, "") and "https://arxiv.org/abs/2407.11859" in own["links"]


def test_what_was_measured_is_saved_with_all_its_digits(page: Chrome, mixed_store: Store, tmp_path: Path) -> None:
    rows = [row for row in saved(page, "json", tmp_path) if row["kind"] == "measured"]
    numbers = {
        (entry.method, entry.remark, entry.backbone, setting, score): number
        for board in load_leaderboard(mixed_store).boards if board.group == Group("full", "paper", "voc")
        for entry in board.entries for setting, found in entry.by_setting.items()
        for score, number in zip(SCORES, found, strict=True) if number.kind == "measured"
    }  # fmt: skip
    assert rows
    for row in rows:
        number = numbers[row["method"], row["remark"], row["network"], row["setting"], row["score"]]
        assert row["value"] == number.value
        assert row["spread"] == (None if math.isnan(number.spread) else number.spread)
    assert any(round(row["value"], 2) != row["value"] for row in rows)


def test_what_is_saved_says_whose_run_is_a_guess(page: Chrome, tmp_path: Path) -> None:
    page.find_element("name", "method").send_keys("Incrementer")
    rows = [row for row in saved(page, "json", tmp_path) if row["kind"] == "quoted"]
    assert rows
    assert all(row["kind_inferred"] for row in rows)
    assert all(", quoted?, " in label for label in labels(page, "quoted"))


def labels(page: Chrome, kind: str) -> list[str]:
    """What the buttons of that kind tell a screen reader."""
    buttons = find(page, f"td.number button[aria-label*='{kind}']")
    return [button.get_attribute("aria-label") or "" for button in buttons]


def test_addresses_of_the_ledger_are_links_and_no_others(page: Chrome) -> None:
    page.find_element("name", "method").send_keys("mbs")
    find(page, "td.re-run-by-others button")[0].click()  # the first click after typing
    links = page.find_elements("css selector", "dialog dd a")
    assert [link.get_attribute("href") for link in links] == [
        "https://arxiv.org/abs/2407.11859", "https://github.com/RoadoneP/ECCV2024_MBS",
    ]  # fmt: skip
    assert {link.get_attribute("rel") for link in links} == {"noopener noreferrer"}


def test_one_setting_is_shown_alone(page: Chrome) -> None:
    find(page, ".setting option")[1].click()
    heads = [head.text for head in find(page, "thead .over") if head.is_displayed()]
    assert heads == ["19-1"] and len(texts(page, "td.number")) == 3 * len(texts(page, "tbody tr"))


def test_a_published_number_opens_its_source_and_escape_closes_it(page: Chrome) -> None:
    from selenium.webdriver.common.keys import Keys

    button = find(page, "tbody tr:first-child button.value")[0]
    assert "where it comes from" in button.get_attribute("aria-label")
    button.send_keys(Keys.ENTER)
    dialog = page.find_element("id", "provenance")
    assert dialog.is_displayed() and page.switch_to.active_element.get_attribute("id") == "close"
    labels = [term.text for term in dialog.find_elements("tag name", "dt")]
    assert {"Number", "Status", "Kind", "Source", "Arithmetic"} <= set(labels)
    press(page, Keys.ESCAPE)
    assert not dialog.is_displayed() and page.switch_to.active_element == button


def test_a_measured_number_opens_its_record_on_another_board(page: Chrome) -> None:
    (link,) = [
        link for link in page.find_elements("css selector", "nav.boards a") if link.text.endswith("VOC 2012, disjoint")
    ]
    link.click()
    assert (
        link.get_attribute("aria-current") == "true"
        and len(page.find_elements("css selector", "section.board:not([hidden])")) == 1
    )
    (button,) = find(page, "button[aria-label*=', mib, disjoint-15-1 old, measured, reproduced']")
    assert button.get_attribute("aria-label").startswith("46.00 ± 0.00, mib")
    button.click()
    dialog = page.find_element("id", "provenance")
    told = dict(
        zip(*([cell.text for cell in dialog.find_elements("tag name", tag)] for tag in ("dt", "dd")), strict=True)
    )
    assert told["Status"] == "reproduced" and told["Seeds"] == "0, 1" and told["Git commit"] == "0" * 40
    assert len(told["Run keys"].split()) == 2 and "fingerprint f0f0" in told["Data"]
    page.find_element("id", "close").click()
    assert not dialog.is_displayed()


def test_a_hostile_name_is_a_text(page: Chrome) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    assert SCRIPT in methods(page)
    (row,) = [text for text in texts(page, "tbody tr") if SCRIPT in text]
    assert '"><img src=x onerror=alert(2)>' in row
    find(page, "button[aria-label*='<script>']")[0].click()
    assert page.find_element("id", "provenance-title").text == SCRIPT
    assert not page.find_elements("css selector", "main script, main img, dialog img")
    with pytest.raises(NoAlertPresentException):
        page.switch_to.alert  # noqa: B018


def test_a_phone_sees_the_method_and_one_setting_without_scrolling_the_page(page: Chrome) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        page.refresh()
        assert page.execute_script("return document.documentElement.scrollWidth <= 390")
        assert not page.find_element("css selector", "#filters form").is_displayed()
        assert len([head for head in find(page, "thead .over") if head.is_displayed()]) == 1
        (scroll,) = find(page, ".scroll")
        page.execute_script("arguments[0].scrollLeft = 300", scroll)
        name = find(page, "tbody th")[0]
        assert name.rect["x"] <= scroll.rect["x"] + 2  # the method stays where it is
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_was_asked_of_the_network_and_the_console_is_silent(browser: Chrome, folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        browser.get(path.as_uri())
        assert browser.title.startswith("Class-incremental")
        assert browser.find_elements("css selector", "tbody tr")
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {message["params"]["request"]["url"] for message in sent if message["method"] == "Network.requestWillBeSent"}
    assert any(url.endswith("index.html") for url in urls)
    assert {url.partition(":")[0] for url in urls} == {"file"}, urls
