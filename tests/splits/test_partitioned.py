"""Partitioned settings: every image belongs to one step, by a class that is drawn with a seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispbench.splits.selection import digest, draw_classes, golden_steps, select_images
from cispbench.splits.settings import Setting, Step, parse_setting

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "partitioned_splits.json").read_text())
PRESENCE = st.dictionaries(
    st.text("abc", max_size=3), st.sets(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 255])), max_size=12
)


def read_presence(path: Path) -> dict[str, frozenset[int]]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {image: frozenset(int(index) + 1 for index in indices) for image, *indices in rows}


def setting_of(title: str) -> Setting:
    """Return the setting of a recorded title, such as ``voc:partitioned-15-1 seed 0``."""
    return parse_setting(title.replace(" seed ", "-s"))


def by_the_rule(presence: dict[str, set[int]], seed: int) -> dict[str, int]:
    """Draw as the rule is written: one ``choice(k)`` an image with a class, in the order of the ids."""
    random, drawn = np.random.RandomState(seed), {}
    for image in sorted(presence):
        classes = sorted(number for number in presence[image] if number not in (0, 255))
        if classes:
            drawn[image] = classes[random.choice(len(classes))]
    return drawn


@given(PRESENCE, st.integers(0, 2**32 - 1))
def test_classes_are_drawn_by_the_rule(presence: dict[str, set[int]], seed: int) -> None:
    assert draw_classes(presence, seed) == by_the_rule(presence, seed)


@given(PRESENCE, st.permutations(range(1, 7)), st.integers(0, 3))
def test_every_image_is_of_the_step_that_learns_its_drawn_class(
    presence: dict[str, set[int]], order: list[int], seed: int
) -> None:
    drawn = by_the_rule(presence, seed)
    for sizes in ((3, 2, 1), (4, 2), (1, 1, 4)):
        parts, left = [], list(order)
        for index, size in enumerate(sizes):
            parts.append(Step(index, tuple(left[:size])))
            left = left[size:]
        setting = Setting("partitioned-3-2", "voc", "partitioned", "3-2", "x", tuple(parts), seed)
        for step in parts:
            expected = sorted(image for image, number in drawn.items() if number in step.classes)
            assert select_images(presence, setting, step.index) == expected


def test_labels_are_those_of_overlapped() -> None:
    partitioned, overlapped = parse_setting("partitioned-15-1-b-s1"), parse_setting("overlapped-15-1-b")
    assert partitioned.steps == overlapped.steps
    assert partitioned.test_table() == overlapped.test_table()
    assert all(partitioned.label_table(step) == overlapped.label_table(step) for step in range(6))


@pytest.mark.golden
@pytest.mark.parametrize("title", RECORDED)
def test_the_shipped_figures_are_those_recorded(title: str) -> None:
    setting = setting_of(title)
    assert (setting.partition_seed, setting.given_lists) == (int(title.rpartition(" ")[2]), False)
    assert golden_steps(setting) == [(step["images"], step["sha256"]) for step in RECORDED[title]]


@pytest.mark.golden
@pytest.mark.parametrize("title", RECORDED)
def test_every_recorded_list_is_drawn(shared: Path, title: str) -> None:
    setting = setting_of(title)
    presence = read_presence(shared / "data" / "class-presence" / f"{setting.dataset}_train.txt")
    chosen = [select_images(presence, setting, step) for step in range(len(setting.steps))]
    assert [(len(ids), digest(ids)) for ids in chosen] == [(step["images"], step["sha256"]) for step in RECORDED[title]]
    assert sorted(image for ids in chosen for image in ids) == select_images(presence, setting.joint(), 0)


@pytest.mark.golden
def test_a_shuffled_order_moves_images_to_the_step_of_their_class(shared: Path) -> None:
    presence = read_presence(shared / "data" / "class-presence" / "voc_train.txt")
    natural, shuffled = parse_setting("partitioned-10-1"), parse_setting("partitioned-15-1-b")
    # Step 1 of order b learns class 17 (sheep), as step 7 of 10-1 in the natural order does.
    assert shuffled.steps[1].classes == natural.steps[7].classes == (17,)
    assert select_images(presence, shuffled, 1) == select_images(presence, natural, 7)
    assert len(select_images(presence, shuffled, 1)) == 266
