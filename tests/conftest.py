"""Fixtures that several folders of tests use."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Set before torch is imported: as many threads as cores in every worker would slow all of them down.
    os.environ["OMP_NUM_THREADS"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a script; the processes that tests start would inherit it, and no Ctrl-C would reach them.
    signal.signal(signal.SIGINT, signal.default_int_handler)

from cispbench.results.record import SCHEMA, StepRecord
from cispbench.results.record_fields import (
    DataUsed,
    Execution,
    GitState,
    Losses,
    Memory,
    MethodUsed,
    ModelUsed,
    Timing,
)
from cispbench.splits.settings import parse_setting

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the project; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference folder ../shared is absent")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The outputs recorded from the papers' released code; tests/golden/README.md says what each file holds."""
    return ROOT / "tests" / "golden"


def build_record(setting: str = "overlapped-15-1", step: int = 0, method: str = "mib", **changes: Any) -> StepRecord:
    plan = parse_setting(setting)
    count = plan.num_foreground + 1
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "key": f"key{step}",
        "previous_key": f"key{step - 1}" if step else None,
        "run_key": "0123456789abcdef",
        "setting": plan.name,
        "dataset": plan.dataset,
        "scenario": plan.scenario,
        "task": plan.task,
        "order": plan.order,
        "learning_order": plan.learning_order,
        "step": step,
        "steps": len(plan.steps),
        "classes": plan.steps[step].classes,
        "method": MethodUsed(method, 1, {"alpha": 1.0, "scales": (1, 2, 4)}),
        "joint": False,
        "profile": "paper",
        "model": ModelUsed("segmenter-tiny", 12345, "none", None),
        "seed": 0,
        "data": DataUsed("synthetic", "f1", 40, 20, "ab" * 32),
        "recipe": {"optim": {"lr": 1e-5}, "crop": (512, 512)},
        "confusion": tuple(tuple(90 if row == column else 1 for column in range(count)) for row in range(count)),
        "losses": Losses((1, 10), {"total": (2.5, 1.25), "cross_entropy": (2.0, 1.0)}),
        "iterations": 10,
        "timing": Timing(10.0, 2.0, 12.3, 210.4, False),
        "memory": Memory(1_000_000, None),
        "skipped_steps": 0,
        "environment": {"python": "3.11", "threads": 2},
        "git": GitState(None, None),
        "quirks": ("median",),
        "created": f"2025-01-31T12:00:{step:02d}+00:00",
        "execution": Execution(devices=1, micro_batch=None),
        "trained_for": None,
        "origin": "measured",
    }
    return StepRecord(**(fields | changes))


@pytest.fixture
def make_record() -> Callable[..., StepRecord]:
    return build_record


class Deviations:
    """What a test measured against a recorded output: the largest deviation, to be told at the end of the session."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def note(self, name: str, deviation: float, bound: float) -> None:
        """Keep a deviation with the bound that it is held against."""
        self._record("deviation", [name, deviation, bound])


@pytest.fixture
def deviations(record_property: Callable[[str, object], None]) -> Deviations:
    return Deviations(record_property)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the largest deviation from every recorded output, where golden tests were asked for (-m golden)."""
    if "golden" not in config.option.markexpr:
        return
    worst: dict[str, tuple[float, float]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, value in getattr(report, "user_properties", []):
                if key == "deviation" and report.when == "call":
                    name, deviation, bound = value
                    worst[name] = max(worst.get(name, (-1.0, bound)), (float(deviation), float(bound)))
    if worst:
        terminalreporter.section("largest deviation from each recorded output")
        for name, (deviation, bound) in sorted(worst.items()):
            terminalreporter.line(f"{name:<58} {deviation:9.2e}  (bound {bound:.0e})")
