"""Speed as a ratio: what is measured and a plain reference take turns, round by round, in CPU seconds of one thread.

A machine's speed cancels out, and so does most of its noise. ``ratios.yaml`` keeps the ratios of a sound state; one
that has grown by more than ``TOLERANCE`` fails. Run all of them by ``pytest -m bench tests/bench``; with
``CISPBENCH_BENCH_UPDATE=1`` the file is written anew.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

RATIOS = Path(__file__).with_name("ratios.yaml")
TOLERANCE = 1.3
ROUNDS = 9
FOUND: dict[str, tuple[float, float, float | None]] = {}  # ours in ms, ratio, ratio of the file

Run = Callable[[], object]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[Run, Run], None]:
    """Measure ``ours`` against ``reference`` and hold the ratio of the medians against the file."""

    def run(ours: Run, reference: Run) -> None:
        for warm_up in (ours, reference):
            warm_up()
        times: list[float] = []

        def before_each_round() -> None:
            started = time.process_time()
            reference()
            times.append(time.process_time() - started)

        benchmark.pedantic(ours, setup=before_each_round, rounds=ROUNDS)
        mine = statistics.median(benchmark.stats.stats.data)
        ratio, name = mine / statistics.median(times), request.node.name.removeprefix("test_")
        stored = yaml.safe_load(RATIOS.read_text()) if RATIOS.exists() else {}
        known = stored.get(name)
        FOUND[name] = mine * 1e3, ratio, known
        benchmark.extra_info["ratio"] = ratio
        if os.environ.get("CISPBENCH_BENCH_UPDATE"):
            RATIOS.write_text(yaml.safe_dump({**stored, name: round(ratio, 3)}))
        else:
            assert known is not None, f"{name} has no ratio in {RATIOS.name} yet (CISPBENCH_BENCH_UPDATE=1)"
            assert ratio <= TOLERANCE * known, f"{name} takes {ratio:.2f} times its reference; it was {known:.2f}"

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, (mine, ratio, known) in FOUND.items():
        stored = "new" if known is None else f"{known:.2f}"
        terminalreporter.write_line(f"{name:40s} {mine:9.1f} ms, {ratio:5.2f} times its reference (stored: {stored})")
