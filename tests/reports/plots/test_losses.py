"""Pictures of the loss, legends that show what they are measured for, and marks and warnings that tell the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Patch

from cispbench.reports.plots.gallery import plan_pictures
from cispbench.reports.plots.losses import draw_losses
from cispbench.reports.plots.page import COLUMN, DPI, Page, Words, drawing, new_page
from cispbench.reports.plots.panels import PanelRow, draw_panels
from cispbench.reports.plots.scatter import draw_scatter
from cispbench.reports.plots.subject import Subject, subjects
from cispbench.reports.tables.cells import cells
from cispbench.reports.tables.scoring import load_runs
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import DataUsed, Losses
from cispbench.results.store import Store

Maker = Callable[..., StepRecord]
BASE = Losses((10, 20, 30), {"cross_entropy": (2.0, 1.0, 0.5)})
LATER = Losses((5, 10), {"cross_entropy": (1.0, 0.5), "distillation": (0.25, 0.125)})
SCENES = DataUsed("synthetic", "f1" * 32, 40, 256, "ab" * 32)


@pytest.fixture
def canvas() -> Iterator[None]:
    with drawing():
        yield


def subject_of(store: Store, make_record: Maker, seeds: int = 1, later: Losses = LATER, **more: Any) -> Subject:
    """Write runs of 15-5 with 30 and 10 iterations, and return what is drawn of them."""
    for seed in range(seeds):
        for step, (losses, iterations) in enumerate(((BASE, 30), (later, 10))):
            fields = {"seed": seed, "run_key": f"{seed:x}" * 16, "losses": losses, "iterations": iterations} | more
            store.write(make_record("overlapped-15-5", step=step, **fields))
    made = cells(load_runs(store))
    return subjects(made[0].group, made, "strict")[0]


def lines_of(drawn: Page) -> list[tuple[list[float], list[float]]]:
    """The lines of more than their samples, by x and y, without the grey ones between steps."""
    shown = [line for line in drawn.figure.axes[0].lines if line.get_color() != "#cccccc"]
    return [(list(np.asarray(line.get_xdata())), list(np.asarray(line.get_ydata()))) for line in shown]


def legend_of(drawn: Page) -> list[str]:
    return [text.get_text() for text in drawn.figure.legends[0].get_texts()]


def test_every_term_and_the_sum_lie_over_the_iterations_of_all_steps(
    tmp_path: Path, make_record: Maker, canvas: None
) -> None:
    subject = subject_of(Store(tmp_path), make_record)
    drawn = draw_losses(subject, subject.cells[0], "mib")
    lines = lines_of(drawn)
    assert ([10, 20, 30], [2.0, 1.0, 0.5]) in lines
    assert ([35, 40], [0.25, 0.125]) in lines  # the second step begins after the 30 iterations of the first
    assert ([35, 40], [1.25, 0.625]) in lines  # the sum
    assert legend_of(drawn) == ["cross_entropy", "distillation", "sum"]
    assert drawn.figure.axes[0].get_yscale() == "log"
    drawn.figure.draw_without_rendering()
    labels = [label.get_text() for label in drawn.figure.axes[0].get_yticklabels()]
    assert "1" in labels and not any("$" in label for label in labels)


def test_each_seed_has_its_line_and_negative_losses_are_drawn_too(
    tmp_path: Path, make_record: Maker, canvas: None
) -> None:
    later = Losses((5, 10), {"cross_entropy": (1.0, -0.5)})
    subject = subject_of(Store(tmp_path), make_record, seeds=3, later=later)
    drawn = draw_losses(subject, subject.cells[0], "mib")
    assert lines_of(drawn).count(([35, 40], [1.0, -0.5])) == 3
    assert legend_of(drawn) == ["cross_entropy"]  # which is the sum
    assert drawn.figure.axes[0].get_yscale() == "linear"
    assert "One line a seed, of 3." in drawn.words.caption


def test_losses_are_drawn_of_what_was_trained(tmp_path: Path, make_record: Maker) -> None:
    subject_of(Store(tmp_path / "a"), make_record)
    (path,) = [picture.path for picture in plan_pictures(Store(tmp_path / "a"), kinds=["losses"])]
    assert path.parts[-2:] == ("mib@segmenter-tiny", "losses")
    subject_of(Store(tmp_path / "b"), make_record, origin="predictions", previous_key=None)
    assert "losses" not in {picture.path.name for picture in plan_pictures(Store(tmp_path / "b"))}


def test_records_without_any_loss_say_so(tmp_path: Path, make_record: Maker, canvas: None) -> None:
    none = Losses((), {})
    subject = subject_of(Store(tmp_path), make_record, later=none, losses=none)
    assert "The records hold no loss." in draw_losses(subject, subject.cells[0], "mib").words.caption


@pytest.mark.parametrize("count", range(1, 12))
def test_a_legend_is_as_wide_as_its_page_at_most(canvas: None, count: int) -> None:
    """Whatever the number of entries: matplotlib puts one more into the first columns than into the others."""
    rng = np.random.default_rng(count)
    for _ in range(12):
        labels = ["m" * int(length) for length in rng.integers(1, 14, count)]
        page = new_page(COLUMN, 1.0, Words("t", "s"), [Patch(label=label) for label in labels])
        page.figure.set_dpi(DPI)
        page.figure.draw_without_rendering()
        box, whole = page.figure.legends[0].get_window_extent(), page.figure.bbox
        assert box.x0 >= whole.x0 and box.x1 <= whole.x1, labels


def test_long_names_in_a_legend_are_whole_while_the_page_has_room(canvas: None) -> None:
    labels = [f"mib (deeplabv3-resnet101, variant {number})" for number in range(6)]
    page = new_page(COLUMN, 1.0, Words("t", "s"), [Patch(label=label) for label in labels])
    assert legend_of(page) == labels


def test_the_mean_is_filled_and_its_seeds_are_hollow(tmp_path: Path, make_record: Maker, canvas: None) -> None:
    subject = subject_of(Store(tmp_path), make_record, seeds=3)
    drawn = draw_scatter(subject)
    marks = [line for line in drawn.figure.axes[0].lines if line.get_marker() not in ("", "None", None)]
    hollow = [line for line in marks if line.get_markerfacecolor() == "none"]
    assert [len(np.asarray(line.get_xdata())) for line in hollow] == [3]
    assert [len(np.asarray(line.get_xdata())) for line in marks if line not in hollow] == [1]
    assert "Filled: mean of seeds; hollow: each seed." in " ".join(drawn.words.caption)


@pytest.mark.parametrize(("data", "profile", "warned"), [(SCENES, "quick", 1), (None, "paper", 0)])
def test_panels_say_what_does_not_compare(
    make_record: Maker, canvas: None, data: DataUsed | None, profile: str, warned: int
) -> None:
    full = DataUsed("full", "f0" * 32, 10582, 1449, "cd" * 32)
    records = [make_record("overlapped-15-5", step=step, data=data or full, profile=profile) for step in (0, 1)]
    mask = np.zeros((8, 8), np.uint8)
    drawn = draw_panels([PanelRow("a", np.zeros((8, 8, 3), np.uint8), mask, [mask, mask])], records)
    assert sum("NOT comparable" in part for part in drawn.words.caption) == warned
    assert not math.isnan(drawn.figure.get_size_inches()[0])
