"""Carry out a request: plan it, train and test what is missing, alone or as one of several processes.

``cispbench run`` calls this; it prints nothing but what its ``view`` shows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cispbench.harness.data.source import ENVIRONMENT
from cispbench.harness.distributed.group import ALONE, Group
from cispbench.harness.machine.acceleration import NONE, Acceleration
from cispbench.harness.machine.devices import default_loaders
from cispbench.harness.machine.environment import emulates_bf16, usable_cores
from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.runs.damaged_records import set_damaged_records_aside
from cispbench.harness.runs.execute import RunResult, execute
from cispbench.harness.runs.forecast import paper_warnings
from cispbench.harness.runs.imported import find_imported
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.plan import RunPlan
from cispbench.harness.runs.prepare import Preparer, served_setting
from cispbench.harness.runs.request import RunRequest
from cispbench.harness.runs.step_cost import Training
from cispbench.harness.runs.step_store import StepStore
from cispbench.results.record import StepRecord
from cispbench.results.store import Store
from cispbench.splits.datasets import dataset
from cispbench.splits.errors import UsageError
from cispbench.splits.settings import Setting

BANNER = """\
No {title} found ({places}): this run uses the built-in synthetic scenes (profile quick).
Its numbers show that everything works and how methods differ; they are NOT comparable with published ones.
For the real thing: cispbench run ... --data-root FOLDER (see "Data" in the README)."""


@dataclass(frozen=True)
class RunPlaces:
    """Where a run works and writes: the stores of records (``out``) and of steps, and the device.

    ``loaders``: processes that load images (None: as many as suit the device). ``wait``: seconds to wait for another
    process that trains the same step (None: until it ends). ``until``: the last step to train (None: all).
    ``acceleration``: what is switched on to be faster.
    """

    out: Path
    steps_dir: Path
    device: torch.device
    loaders: int | None = None
    wait: float | None = None
    until: int | None = None
    acceleration: Acceleration = NONE


def launch(
    request: RunRequest, places: RunPlaces, view: ProgressView, group: Group = ALONE,
    on_step: Callable[[StepRecord], None] | None = None,
) -> tuple[RunPlan, RunResult]:  # fmt: skip
    """Plan a run and carry it out; of several processes the first one alone returns the records.

    ``on_step`` is called with each record, as soon as it is there. Raises CispbenchError.
    """
    _share_cores(group, places.device)
    setting = served_setting(request.setting)
    if places.until is not None and places.until > setting.last_step:
        raise UsageError(f"--until {places.until}: the last step of {setting.name} is {setting.last_step}.")
    steps = StepStore(places.steps_dir)
    if places.until is not None and request.start_from is not None:
        first = find_imported(steps, request.start_from).step
        if places.until < first:
            raise UsageError(f"--until {places.until}: the run starts at step {first}, the imported one.")
    preparer = Preparer(steps, view, in_turn=group.in_turn)
    plan = preparer.prepare(replace(request, devices=group.size))
    _note_precision(plan, places.device, view)
    if request.start_from is not None and plan.method.trains(0) and plan.steps[0].step == 0:
        name = plan.method.name
        view.note(f"{name} trains step 0 with a loss of its own: the checkpoint should be one of {name}'s")
    if request.profile is None and plan.profile == "quick":
        view.note(_banner(setting))
    records = Store(places.out)
    if group.first:
        # Before anything reads the records: a damaged one is mended by this run, and must not end it.
        set_damaged_records_aside(records, view, plan.run_key)
        _warn(plan, places, steps, view, group)
    options = RunOptions(
        records=records, steps=steps, device=places.device, view=view, workers=_loaders(places),
        wait=places.wait, on_step=on_step, until=places.until, group=group, source=preparer.source(plan),
        acceleration=places.acceleration,
    )  # fmt: skip
    with places.acceleration.in_force():
        return plan, execute(plan, options)


def _warn(plan: RunPlan, places: RunPlaces, steps: StepStore, view: ProgressView, group: Group) -> None:
    """Warn of what would train for months, or on too few images, where something is left to train."""
    missing = [
        Training(plan, planned.step)
        for planned in plan.steps
        if planned.made_of and not steps.has(planned.key)
        if places.until is None or planned.step <= places.until
    ]
    if all(Store(places.out).find(planned.key, plan.run_key) for planned in plan.steps):
        return
    for warning in paper_warnings(missing, places.device, _parallel(group, places.device)):
        view.warn(warning)


def _parallel(group: Group, device: torch.device) -> int:
    """Return how many devices share a step; processes on the CPU share its cores, and are no faster."""
    return group.size if device.type != "cpu" else 1


def _share_cores(group: Group, device: torch.device) -> None:
    """Let each of several processes on the CPU compute in as many threads as there are cores for it."""
    if group.size > 1 and device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores()[0] // group.size))


def _note_precision(plan: RunPlan, device: torch.device, view: ProgressView) -> None:
    """Say where a precision costs time instead of saving it."""
    precisions = {plan.recipe.phase(step.step, name).precision for step in plan.steps for name in step.phases}
    if device.type == "cpu" and "bf16" in precisions and emulates_bf16():
        view.note(
            "optim.precision=bf16: this processor has no bf16 arithmetic and emulates it, many times slower than "
            "float32 (--set optim.precision=fp32)"
        )


def _banner(setting: Setting) -> str:
    places = f"{ENVIRONMENT}: {os.environ.get(ENVIRONMENT) or 'not set'}, ./data: nothing of it"
    return BANNER.format(title=dataset(setting.dataset).title, places=f"--data-root: not given, {places}")


def _loaders(places: RunPlaces) -> int:
    if places.loaders is not None:
        return places.loaders
    return default_loaders(places.device.type, usable_cores()[1])
