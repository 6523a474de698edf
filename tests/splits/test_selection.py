"""Selection of images: by rule, against a slow reference, and against the published counts and digests."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispbench.splits.datasets import dataset
from cispbench.splits.errors import DataError, SettingError
from cispbench.splits.selection import digest, golden_list, golden_steps, select_images
from cispbench.splits.settings import Setting, Step, list_settings, parse_setting

PRESENCE = {
    "d": {0, 1, 255},
    "a": {1, 16},
    "c": {16, 20},
    "b": {0, 255},
    "e": {16, 0},
    "f": {20},
}


def test_overlapped_and_disjoint_by_hand() -> None:
    overlapped, disjoint = parse_setting("overlapped-15-1"), parse_setting("disjoint-15-1")
    assert select_images(PRESENCE, overlapped, 0) == ["a", "d"]
    assert select_images(PRESENCE, disjoint, 0) == ["d"]
    assert select_images(PRESENCE, overlapped, 1) == ["a", "c", "e"]
    assert select_images(PRESENCE, disjoint, 1) == ["a", "e"]
    assert select_images(PRESENCE, disjoint, 5) == ["c", "f"]


def test_disjoint_goes_by_the_order_of_learning_not_by_numbers() -> None:
    setting = parse_setting("disjoint-15-1-b")  # 17, 3, 6, 18, 10 come last
    presence = {"late": {2, 17}, "early": {2, 20}, "future": {17, 3}}
    assert select_images(presence, setting, 0) == ["early"]
    assert select_images(presence, setting, 1) == ["late"]
    assert select_images(presence, setting, 2) == ["future"]


@pytest.mark.parametrize("name", ["overlapped-15-1", "disjoint-15-1-c"])
def test_joint_takes_every_image_with_a_class(name: str) -> None:
    assert select_images(PRESENCE, parse_setting(name).joint(), 0) == ["a", "c", "d", "e", "f"]


def test_given_lists_cannot_be_computed() -> None:
    with pytest.raises(SettingError, match=r"seed that is lost.*partitioned-100-50-s0"):
        select_images({"x": {1}}, parse_setting("partitioned-100-50"), 0)
    assert select_images({"x": {1}, "y": set()}, parse_setting("partitioned-100-50").joint(), 0) == ["x"]


def test_a_number_that_is_no_class_names_the_image() -> None:
    with pytest.raises(DataError, match=r"bad holds \[21\].*voc"):
        select_images({"good": {1}, "bad": {1, 21}}, parse_setting("overlapped-15-1"), 0)


def test_digest_of_known_text() -> None:
    assert digest(["b", "a"]) == digest(iter(["a", "b"]))
    assert digest(["a", "b"]) == "7e18f737311b2dc3b2f269dd78396b0351f14fb66efa879f768cb23181883c78"


@given(
    st.permutations(range(1, 7)),
    st.dictionaries(st.text("abc", max_size=3), st.sets(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 255])), max_size=12),
    st.sampled_from(["overlapped", "disjoint"]),
)
def test_selection_agrees_with_a_slow_reference(order: list[int], presence: dict[str, set[int]], scenario: str) -> None:
    steps = (Step(0, tuple(order[:3])), Step(1, tuple(order[3:5])), Step(2, (order[5],)))
    setting = Setting(f"{scenario}-3-2", "voc", scenario, "3-2", "x", steps)
    for step in range(3):
        expected = []
        for image in sorted(presence):
            classes = [number for number in presence[image] if number not in (0, 255)]
            wanted = any(number in steps[step].classes for number in classes)
            if scenario == "disjoint":
                wanted = wanted and all(number in setting.classes_seen(step) for number in classes)
            if wanted:
                expected.append(image)
        assert select_images(presence, setting, step) == expected


def test_shipped_figures_cover_the_listed_settings() -> None:
    for setting in list_settings():
        steps = golden_steps(setting)
        assert steps is not None
        assert len(steps) == len(setting.steps)
        assert golden_steps(setting.joint()) is None
    assert golden_steps(parse_setting("overlapped-15-1-w")) is None
    assert golden_list("voc", "train")[0] == 10582
    assert golden_list("ade", "val")[0] == 2000
    with pytest.raises(SettingError, match="'vall'"):
        golden_list("voc", "vall")


@cache
def read_presence(path: Path) -> dict[str, frozenset[int]]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {image: frozenset(int(index) + 1 for index in indices) for image, *indices in rows}


@pytest.mark.golden
@pytest.mark.parametrize("dataset", ["voc", "ade"])
def test_figures_are_those_recorded(golden: Path, dataset: str) -> None:
    recorded = json.loads((golden / "splits.json").read_text())[dataset]
    settings = recorded["settings"] | {
        f"partitioned-{task}": {"train": steps} for task, steps in recorded.get("mib_partition", {}).items()
    }
    for name, entry in settings.items():
        setting = parse_setting(name)
        assert golden_steps(setting) == [(step["images"], step["sha256"]) for step in entry["train"]]
        if "class_order" in entry:
            assert list(setting.learning_order) in (entry["class_order"], [0, *entry["class_order"]])


@pytest.mark.golden
@pytest.mark.parametrize("dataset", ["voc", "ade"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_whole_lists_are_reproduced(shared: Path, dataset: str, split: str) -> None:
    presence = read_presence(shared / "data" / "class-presence" / f"{dataset}_{split}.txt")
    assert (len(presence), digest(presence)) == golden_list(dataset, split)


def computable() -> list[str]:
    names = [setting.name for setting in list_settings() if setting.scenario != "partitioned"]
    names += [
        f"{scenario}-15-1-{order}" for scenario in ("overlapped", "disjoint") for order in dataset("voc").orders["15-1"]
    ]
    return [name for name in names if golden_steps(parse_setting(name)) is not None]


@pytest.mark.golden
@pytest.mark.parametrize("name", computable())
def test_every_step_is_reproduced(shared: Path, name: str) -> None:
    setting = parse_setting(name)
    presence = read_presence(shared / "data" / "class-presence" / f"{setting.dataset}_train.txt")
    chosen = [select_images(presence, setting, step) for step in range(len(setting.steps))]
    assert [(len(ids), digest(ids)) for ids in chosen] == golden_steps(setting)


@pytest.mark.golden
def test_partitions_share_out_the_images_once(shared: Path) -> None:
    """The lists themselves are not known here; their counts add up to the images that hold a class."""
    presence = read_presence(shared / "data" / "class-presence" / "ade_train.txt")
    with_classes = len(select_images(presence, parse_setting("overlapped-100-50").joint(), 0))
    for task in ("100-50", "100-10", "50-50"):
        steps = golden_steps(parse_setting(f"partitioned-{task}"))
        assert steps is not None
        assert sum(images for images, _ in steps) <= with_classes
