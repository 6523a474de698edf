"""Fixtures that several folders of tests use."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Set before torch is imported: as many threads as cores in every worker would slow all of them down.
    os.environ["OMP_NUM_THREADS"] = "1"

# As wide as where there is no terminal; the workers of pytest-xdist say 80, and commands wrap their texts to it.
os.environ["COLUMNS"] = "100"

# Processes that tests start find the modules of the tests by name. Last: the package comes from where it is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a script; the processes that tests start would inherit it, and no Ctrl-C would reach them.
    signal.signal(signal.SIGINT, signal.default_int_handler)

from cispbench.results.record import SCHEMA, StepRecord, confusion_rows
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
from cispbench.splits.selection import golden_list, golden_steps, has_golden
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


def build_counts(count: int, known: int) -> tuple[tuple[int, ...], ...]:
    """Counts of as many pixels of every class: of known ones most are right, all else is taken for background."""
    rows = [[0] * count for _ in range(count)]
    for row in range(count):
        for column in range(count):
            rows[row][column if column < known else 0] += 90 if row == column else 1
    return tuple(map(tuple, rows))


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
        "data": DataUsed("mini", "f1", 40, 20, "ab" * 32),
        "recipe": {"optim": {"lr": 1e-5}, "crop": (512, 512)},
        "confusion": build_counts(count, count if changes.get("joint") else plan.num_classes(step)),
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
        "exemplars": None,
        "supervision": (),
    }
    return measurable(StepRecord(**(fields | changes)))


VIEW = {"evaluation": {"resize_short": 500, "crop": None}}  # of which no pixels are published


def measurable(record: StepRecord) -> StepRecord:
    """Return a record with the same shares of right pixels as one that can have been measured, as every store asks.

    What is predicted of classes not learnt yet becomes background. Full data have their published lists and enough
    pixels.
    """
    plan, counts = parse_setting(record.setting), record.matrix()
    if not record.joint:
        known = plan.num_classes(record.step)
        counts[:, 0] += counts[:, known:].sum(axis=1)
        counts[:, known:] = 0
    data, recipe, lists = record.data, record.recipe, golden_steps(plan)
    if data.kind == "full" and has_golden(plan.dataset):
        data = replace(data, val_images=golden_list(plan.dataset, "val")[0])
        if lists is not None and not record.joint and record.origin != "predictions":
            images, sha256 = lists[record.step]
            data = replace(data, train_images=images, list_sha256=sha256)
        if "evaluation" not in recipe:
            recipe = recipe | VIEW
            counts *= -(-data.val_images * 10_000 // counts.sum())
    return replace(record, confusion=confusion_rows(counts), data=data, recipe=recipe)


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
