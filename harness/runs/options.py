"""Where and how a run works: what does not belong to the experiment, and enters no key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cispbench.harness.data.source import Source
from cispbench.harness.distributed.group import ALONE, Group
from cispbench.harness.machine.acceleration import NONE, Acceleration
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.method import Method
from cispbench.harness.runs.step_store import StepStore
from cispbench.results.record import StepRecord
from cispbench.results.store import Store


@dataclass(frozen=True)
class RunOptions:
    """Where and how a run works: no choice of the experiment, though devices differ in their rounding.

    ``until``: the last step to train and test (None: the last one of the setting). ``stop`` is asked after every
    iteration; once it returns True the run ends with a StoppedError, at a checkpoint. ``group``: the processes that
    share each batch; the first one alone reads and writes the stores. ``source``, ``method``: those of the plan, where
    they are open already (None: they are opened when they are needed). ``acceleration``: what is switched on to be
    faster.
    """

    records: Store
    steps: StepStore
    device: torch.device
    view: ProgressView
    workers: int = 0
    wait: float | None = None
    on_step: Callable[[StepRecord], None] | None = None
    until: int | None = None
    stop: Callable[[], bool] | None = None
    group: Group = ALONE
    source: Source | None = None
    method: Method | None = None
    acceleration: Acceleration = NONE
