"""A store that several tests of reports look at, and a browser to look at pages with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed, MethodUsed, ModelUsed
from cispbench.results.store import Store
from cispbench.results.submission_text import content_digest
from cispbench.splits.selection import golden_steps
from cispbench.splits.settings import parse_setting

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

LIKE = Path(__file__).parents[1] / "results" / "record_schema_1.json"
SCRIPT = "<script>alert(1)</script>"
FULL = DataUsed("full", "f0" * 32, 10582, 1449, "cd" * 32)  # its lists are each setting's own
VIEW = {"evaluation": {"resize_short": 500, "crop": None}}  # of which no pixels are published
MINI = DataUsed("mini", "f2" * 32, 1028, 467, "ef" * 32)
SCENES = DataUsed("synthetic", "f1" * 32, 40, 256, "ab" * 32)
SCALE = 200  # 16,000 pixels an image of the full data
RESNET = ModelUsed("deeplabv3-resnet101", 58_000_000, "resnet101-imagenet", "aa" * 32)
TINY = ModelUsed("segmenter-tiny", 12345, "none", None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
)  # fmt: skip


def matrix(old: int, new: int) -> tuple[tuple[int, ...], ...]:
    """Counts of VOC with these IoU in percent for classes 1 to 15 and 16 to 20: every miss is taken for background."""
    rows = [[0] * 21 for _ in range(21)]
    rows[0][0] = 100_000 * SCALE
    for index in range(1, 21):
        rows[index][index] = 10 * (old if index <= 15 else new) * SCALE
        rows[index][0] = 1000 * SCALE - rows[index][index]
    return tuple(map(tuple, rows))


def put_run(store: Store, method: str, setting: str, /, *scores: tuple[int, int], **changes: Any) -> None:
    """Write the last step of a run on VOC for each (old, new), seeds from 0 on; on full data unless said otherwise."""
    like, plan = StepRecord.from_json(LIKE.read_bytes(), str(LIKE)), parse_setting(setting)
    step = plan.last_step
    fields: dict[str, Any] = {
        "profile": "paper", "data": FULL, "model": RESNET, "recipe": like.recipe | VIEW,
        "method": MethodUsed(method, 1, {"alpha": 1.0}),
    } | changes  # fmt: skip
    lists = golden_steps(plan)
    if fields["data"] == FULL and lists is not None:
        fields["data"] = replace(FULL, train_images=lists[step][0], list_sha256=lists[step][1])
    for seed, (old, new) in enumerate(scores):
        run_key = content_digest([setting, method, seed, repr(fields)])
        record: StepRecord = replace(
            like, setting=plan.name, dataset=plan.dataset, scenario=plan.scenario, task=plan.task, order=plan.order,
            learning_order=plan.learning_order, step=step, steps=len(plan.steps), classes=plan.steps[step].classes,
            seed=seed, run_key=run_key, key=f"{run_key}-{step}",
            confusion=matrix(old, new), **fields,
        )  # fmt: skip
        store.write(record)


@pytest.fixture(scope="session")
def mixed_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Full, mini and synthetic runs: reproduced, off, with nothing beside it, submitted, hostile."""
    store = Store(tmp_path_factory.mktemp("mixed") / "out")
    put_run(store, "mib", "disjoint-15-1", (46, 13), (46, 13))
    put_run(store, "lwf", "disjoint-15-1", (20, 12))
    put_run(store, "mine", "disjoint-15-1", (70, 60))
    put_run(store, "mib", "disjoint-15-1", (99, 99), origin="submitted")
    put_run(store, "ilt", "disjoint-15-1", (4, 6), origin="submitted")  # as published: 3.7 and 5.7
    put_run(store, SCRIPT, "overlapped-15-1", (50, 30), model=replace(RESNET, name='"><img src=x onerror=alert(2)>'))
    put_run(store, "mib", "overlapped-15-5", (60, 50), (62, 52), profile="quick", data=SCENES, model=TINY)
    put_run(store, "plop", "overlapped-15-5", (65, 55), profile="quick", data=SCENES, model=TINY)
    put_run(store, "mib", "overlapped-15-5", (40, 30), profile="mine<b>")
    put_run(store, "mib", "overlapped-15-5", (98, 97), profile="mini", data=MINI, model=TINY)
    return store


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One Chromium for all tests here, that notes what it asks for and what its console says."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        reason = f"{' and '.join(missing)} absent (Debian: apt-get install chromium chromium-driver)"
        pytest.fail(reason) if os.environ.get("CISPBENCH_REQUIRE_BROWSER") else pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(programs["chromium"])
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs["chromedriver"]))
    driver.get("about:blank")
    driver.get_log("performance")  # what Chromium's own first page has loaded
    yield driver
    driver.quit()
