"""What a measured row's weights have learnt from is said where it is known, and else said to be not known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cispbench.reports.leaderboard.board import load_leaderboard
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import ModelUsed
from cispbench.results.store import Store

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("weights", "badges"),
    [
        ("none", ["no pre-training"]),
        ("resnet101-imagenet", []),
        ("vit_base_patch16_384-augreg", ["pre-training"]),
        ("mobilenet_v2_imagenet.pth", ["not known: pre-training"]),  # a file, whatever its name says
    ],
)
def test_weights_deserve_the_badge_that_is_known_of_them(
    tmp_path: Path, make_record: Callable[..., StepRecord], weights: str, badges: list[str]
) -> None:
    digest = None if weights == "none" else "ab" * 32
    store = Store(tmp_path)
    store.write(make_record("overlapped-15-5", step=1, method="mib", model=ModelUsed("any", 12345, weights, digest)))
    rows = [entry for board in load_leaderboard(store).boards for entry in board.entries if entry.run_by == "here"]
    assert [[badge.name for badge in row.badges] for row in rows] == [badges]


def test_the_committed_runs_on_small_data_are_not_said_to_have_learnt_more() -> None:
    boards = [board for board in load_leaderboard(Store(ROOT / "results")).boards if board.group.kind == "mini"]
    badges = {badge.name for board in boards for entry in board.entries for badge in entry.badges}
    assert badges == {"not known: pre-training"}
