"""Panels as they are drawn: colours, void, legend and words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cispbench.reports.plots.page import drawing, render
from cispbench.reports.plots.panels import PanelRow, draw_panels
from cispbench.results.record import StepRecord
from cispbench.splits.classes import class_names, palette

Maker = Callable[..., StepRecord]


def test_panels_of_a_joint_run_and_void(make_record: Maker) -> None:
    record = make_record(joint=True, steps=1, classes=tuple(range(1, 21)), method="joint")
    truth = np.array([[0, 3, 255], [255, 20, 3]], dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    row = PanelRow("$an id$", np.zeros((20, 30, 3), np.uint8), truth, [np.zeros_like(truth)], "-1 %")
    with drawing():
        drawn = draw_panels([row], [record])
        axes = drawn.figure.axes
        assert [a.get_title() for a in axes] == ["image", "ground truth", "prediction"]
        painted = axes[1].images[0].get_array()
        assert tuple(painted[5, 15]) == (128, 128, 0) and tuple(painted[15, 15]) == (0, 64, 128)  # bird, tvmonitor
        void = {tuple(colour) for colour in painted[truth == 255].tolist()}
        assert void == {(255, 255, 255), (153, 153, 153)}
        legend = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
        assert legend == ["background", "bird", "tvmonitor", "void"]
        assert axes[0].get_ylabel() == "$an id$\n-1 %"
        assert render(drawn, "png")[:4] == b"\x89PNG"


def test_the_legend_holds_what_is_seen_and_when_it_is_learnt(make_record: Maker) -> None:
    """In the order of learning, by class index: in order b of 15-1 the sixteenth is no potted plant."""
    records = [make_record("overlapped-15-1-b", step=step) for step in range(6)]
    names = [class_names("voc")[number] for number in records[0].learning_order]
    truth = np.full((8, 8), 16, np.uint8)
    row = PanelRow("a", np.zeros((8, 8, 3), np.uint8), truth, [np.full_like(truth, step) for step in range(6)])
    with drawing():
        drawn = draw_panels([row, row], records, "Words below.")
        legend = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
        assert legend == ["background", *(f"{names[index]} (0)" for index in range(1, 6)), f"{names[16]} (1)"]
        titles = [axes.get_title() for axes in drawn.figure.axes]
        assert titles[:8] == ["image", "ground truth", *(f"step {step}" for step in range(6))]
        assert titles[8:] == [""] * 8
        painted = drawn.figure.axes[1].images[0].get_array()
        assert tuple(painted[0, 0]) == palette("voc")[records[0].learning_order[16]]
        assert drawn.words.caption == [
            "In brackets: the step that learns a class.",
            "Words below.",
            "Measured on a small part of the real data: these numbers are NOT comparable with published ones.",
        ]
        again = {render(draw_panels([row, row], records, "Words below."), "svg") for _ in range(3)}
        assert again == {render(drawn, "svg")}  # the solver of the layout is not exact
