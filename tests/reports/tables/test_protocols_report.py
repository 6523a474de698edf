"""One run under every protocol: the same counts, other means, and what no rule of counting can change."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cispbench.reports.tables.protocols import protocols_json, protocols_table, unmet
from cispbench.reports.tables.render import render_store
from cispbench.reports.tables.runs import Selection
from cispbench.results import run_rules
from cispbench.results.protocols import load_protocol, protocol_names
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed
from cispbench.results.store import Store
from cispbench.splits.errors import SettingError, UsageError
from cispbench.splits.strict_yaml import load_yaml

Maker = Callable[..., StepRecord]
FULL = DataUsed("full", "f0", 10582, 1449, "cd" * 32)
TESTED = {"evaluation": {"resize_short": 512, "crop": 512, "batch": 8}}
SCENES = DataUsed("synthetic", "f1", 40, 20, "ab" * 32)

# Of each class in the test masks under the view of TESTED: a run on full data has to have them.
PIXELS = load_yaml(Path(run_rules.__file__).parent / "known_pixels.yaml")["voc"][0]["pixels"]


def matrix() -> tuple[tuple[int, ...], ...]:
    """Counts of VOC: 80 of 100 pixels right in old classes, 40 in new ones, 0 in class 20; misses are background."""
    rows = [[0] * 21 for _ in range(21)]
    rows[0][0] = PIXELS[0]
    for index in range(1, 21):
        rows[index][index] = PIXELS[index] * (80 if index <= 15 else 40 if index < 20 else 0) // 100
        rows[index][0] = PIXELS[index] - rows[index][index]
    return tuple(map(tuple, rows))


BACKGROUND = 100 * PIXELS[0] / sum(row[0] for row in matrix())
FOREGROUND = 15 * 80 + 4 * 40
EXPECTED = {
    "strict": (80.0, 32.0, (FOREGROUND + BACKGROUND) / 21),
    "mib20": (80.0, 32.0, FOREGROUND / 20),
    "plop21": ((15 * 80 + BACKGROUND) / 16, 32.0, (FOREGROUND + BACKGROUND) / 21),
    "ssul21": ((15 * 80 + BACKGROUND) / 16, 32.0, (FOREGROUND + BACKGROUND) / 21),
    "mbs24": (80.0, 32.0, (FOREGROUND + BACKGROUND) / 20),  # class 20 is forgotten and leaves the mean
}


@pytest.fixture
def store(tmp_path: Path, make_record: Maker) -> Store:
    """Three finished runs, one of them superseded, and one that is not finished."""
    store, base = Store(tmp_path), {"step": 5, "data": FULL, "recipe": TESTED, "confusion": matrix()}
    store.write(make_record(**base, run_key="a" * 16, method="mbs"))
    store.write(make_record(**base, run_key="b" * 16, method="mbs", created="2031-01-01T00:00:00+00:00"))
    store.write(make_record("disjoint-15-1", **base, run_key="c" * 16))
    store.write(make_record(step=2, run_key="d" * 16, method="plop"))
    return store


def block(text: str, start: str) -> dict[str, list[str]]:
    """Return, by their first cell, the rows of the table below the heading."""
    lines = text[text.index(start) :].splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("|"))
    rows = {}
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = cells
    return rows


def test_every_protocol_has_its_row_in_every_run(store: Store) -> None:
    text = protocols_table(store)
    for heading in ("### mbs on overlapped-15-1", "### mib on disjoint-15-1"):
        rows = block(text, heading)
        assert list(rows) == protocol_names()
        for name, numbers in EXPECTED.items():
            assert rows[name][:3] == [f"{value:.2f}" for value in numbers], name
    assert text.count("### ") == 2
    assert "plop on" not in text  # it is not finished
    assert "run bbbbbbbbbb" in text and "run aaaaaaaaaa" not in text
    assert "left out: 1" in text
    assert "NOT comparable" not in text


def test_what_was_decided_by_the_test_is_said_not_to_be_met(store: Store) -> None:
    text = protocols_table(store)
    rows = block(text, "### mbs on")
    assert {name: cells[3] for name, cells in rows.items()} == {
        "strict": "-", "mib20": "-", "plop21": "-",
        "ssul21": "crop 513, best checkpoint on val", "mbs24": "best checkpoint on val",
        "dkd22": "full image, images with a class seen", "alife22": "images with a class seen",
    }  # fmt: skip
    assert "tested on: crop 512, all images, last iteration" in text
    assert "WARNING" in text and "not changed here: images, view, checkpoint" in text


def test_the_switches_are_those_of_the_protocols(store: Store) -> None:
    text = protocols_table(store)
    rows, fixed = block(text, "## Switches"), block(text, "WARNING")
    assert rows["strict v1"] == ["dropped", "kept", "in all", "ignored", "ignored"]
    assert rows["mib20 v1"][2] == "in neither"
    assert rows["plop21 v1"] == ["dropped", "kept", "in old and all", "background", "class 0"]
    assert rows["ssul21 v1"] == ["zero", "kept", "in old and all", "removed", "class 0"]
    assert rows["mbs24 v1"] == ["zero", "dropped", "in all", "removed", "ignored"]
    assert rows["dkd22 v1"] == ["zero", "kept", "in old and all", "background", "class 0"]
    assert "On ade, future of dkd22 is ignored." in text
    assert rows["alife22 v1"] == ["zero if predicted", "kept", "in old and all", "background", "class 0"]
    assert fixed == {
        "strict v1": ["all", "crop 512", "last"], "mib20 v1": ["all", "crop 512", "last"],
        "plop21 v1": ["all", "crop 512", "last"], "ssul21 v1": ["all", "crop 513", "best"],
        "mbs24 v1": ["all", "crop 512", "best"], "dkd22 v1": ["seen", "full image", "last"],
        "alife22 v1": ["seen", "crop 512", "last"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "strict", "ssul"),
    [
        (TESTED, (), ("crop 513", "best checkpoint on val")),
        ({"evaluation": {"resize_short": 513, "crop": 513}}, ("crop 512",), ("best checkpoint on val",)),
        ({"evaluation": {"resize_short": 600, "crop": 512}}, ("crop 512",), ("crop 513", "best checkpoint on val")),
        ({"evaluation": {"resize_short": None, "crop": None}}, ("crop 512",), ("crop 513", "best checkpoint on val")),
        ({}, ("crop 512",), ("crop 513", "best checkpoint on val")),
    ],
)
def test_unmet_by_the_view_of_a_recipe(
    make_record: Maker, recipe: dict[str, Any], strict: tuple[str, ...], ssul: tuple[str, ...]
) -> None:
    record = make_record(recipe=recipe)
    assert (unmet(record, load_protocol("strict")), unmet(record, load_protocol("ssul21"))) == (strict, ssul)


def test_a_protocol_of_the_full_image_or_of_fewer_images(make_record: Maker) -> None:
    full = dataclasses.replace(load_protocol("strict"), view="full", size=0, images="seen")
    assert unmet(make_record(recipe=TESTED), full) == ("full image", "images with a class seen")
    whole = {"evaluation": {"resize_short": None, "crop": None}}
    assert unmet(make_record(recipe=whole), full) == ("images with a class seen",)


def test_as_json(store: Store) -> None:
    content = json.loads(protocols_json(store))
    assert [entry["name"] for entry in content["protocols"]] == protocol_names()
    assert len(content["runs"]) == 2
    for run in content["runs"]:
        assert run["tested_on"] == ["crop 512", "all images", "last iteration"]
        for name, numbers in EXPECTED.items():
            scored = run["protocols"][name]
            assert [scored[part] for part in ("old", "new", "all")] == pytest.approx(list(numbers)), name
    assert content["runs"][0]["protocols"]["ssul21"]["unmet"] == ["crop 513", "best checkpoint on val"]


def test_side_by_side_is_what_each_protocol_gives_alone(store: Store) -> None:
    runs = json.loads(protocols_json(store))["runs"]
    for name in protocol_names():
        alone = json.loads(render_store(store, "json", name, each=True))
        assert [row["run_key"] for row in alone] == [run["run_key"] for run in runs]
        for row, run in zip(alone, runs, strict=True):
            assert row["all"] == run["protocols"][name]["all"]


def test_small_data_and_odd_names(tmp_path: Path, make_record: Maker) -> None:
    store = Store(tmp_path)
    assert protocols_table(store).startswith(f"No finished runs in {tmp_path}.")
    assert json.loads(protocols_json(store))["runs"] == []
    store.write(make_record(step=5, method="a|b", run_key="e" * 16, profile="quick", data=SCENES))
    joint = {"method": "joint", "joint": True, "steps": 1, "classes": tuple(range(1, 21)), "run_key": "f" * 16}
    store.write(make_record(**joint, confusion=matrix(), profile="quick", data=SCENES))
    text = protocols_table(store)
    assert "### a\\|b on overlapped-15-1" in text
    assert "a view not recorded" in text
    assert "synthetic scenes: these numbers are NOT comparable" in text
    assert block(text, "### joint on")["mib20"][:3] == [f"{value:.2f}" for value in EXPECTED["mib20"]]


def test_another_recipe_is_named_as_a_variant(store: Store, make_record: Maker) -> None:
    other = {"evaluation": {"resize_short": 513, "crop": 513, "batch": 8}}
    later = {"run_key": "e" * 16, "created": "2032-01-01T00:00:00+00:00", "method": "mbs"}
    store.write(make_record(step=5, data=FULL, recipe=other, confusion=matrix(), **later))
    rows = block(protocols_table(store), "### mbs on overlapped-15-1 (variant ")
    assert rows["strict"][3] == "crop 512"
    assert rows["ssul21"][3] == "best checkpoint on val"


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({}, {"b", "c"}),
        ({"method": "m*"}, {"b", "c"}),
        ({"method": "mbs"}, {"b"}),
        ({"setting": "*-15-1"}, {"b", "c"}),
        ({"setting": "voc:disjoint-15-1-a"}, {"c"}),
        ({"method": "mi?", "setting": "disjoint-*"}, {"c"}),
        ({"run": "aaaa"}, {"a"}),  # superseded, but asked for
    ],
)
def test_runs_are_selected(store: Store, chosen: dict[str, str], found: set[str]) -> None:
    selection = Selection(**chosen)
    assert {run["run_key"][0] for run in json.loads(protocols_json(store, selection))["runs"]} == found
    assert {
        run["run_key"][0] for run in json.loads(render_store(store, "json", "mbs24", selection, each=True))
    } == found
    assert protocols_table(store, selection).count("### ") == len(found)


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"method": "mbss"}, ["--method mbss", "Did you mean 'mbs'?"]),
        ({"method": "plop"}, ["--method plop", "mbs, mib"]),  # not finished
        ({"method": "mbs", "setting": "disjoint-*"}, ["--method mbs --setting disjoint-*", "overlapped-15-1"]),
        ({"run": "ab"}, ["--run ab"]),
    ],
)
def test_a_selection_without_runs_is_an_error(store: Store, chosen: dict[str, str], says: list[str]) -> None:
    for show in (protocols_table, protocols_json):
        with pytest.raises(UsageError) as caught:
            show(store, Selection(**chosen))
        assert all(text in str(caught.value) for text in says)
    with pytest.raises(UsageError):
        render_store(store, "markdown", "strict", Selection(**chosen))
    with pytest.raises(SettingError):
        Selection(setting="overlapped-15-7")


def test_it_fits_a_terminal(store: Store) -> None:
    assert max(map(len, protocols_table(store).splitlines())) <= 110
