"""The table below a sweep: each run with its scores, and each warning once."""

from __future__ import annotations

from typing import Any

from cispbench.harness.commands.sweep_results import runs_table

WARNING = "Measured on a small part of the real data: these numbers are NOT comparable with published ones."


def row(**changes: Any) -> dict[str, Any]:
    names = {"method": "mib", "setting": "overlapped-15-5", "model": "deeplabv3-tiny", "dataset": "voc", "data": "mini"}
    return {**names, "profile": "mini", "seed": 0, "old": 60.0, "new": None, "all": 50.0, **changes}


def test_a_warning_for_two_profiles_is_printed_once() -> None:
    text = runs_table([row(), row(profile="mine"), row(seed=1)])
    assert text.count(WARNING) == 1


def test_different_warnings_are_all_printed() -> None:
    text = runs_table([row(), row(data="synthetic", profile="quick"), row(data="full", profile="paper")])
    assert text.count("NOT comparable") == 2
    assert "60.00" in text and " - " in text
