"""``cispbench run``: train a method through all steps of a setting."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cispbench.harness.commands.options import (
    DATA_ROOT,
    DEVICE,
    LOADERS,
    MICRO_BATCH,
    OUT,
    PRINTING,
    RECIPE,
    STEPS_DIR,
    WEIGHTS,
    Printing,
    collected,
    refuse_given,
    run_request,
)
from cispbench.harness.commands.planning import ON, PLAN, priced_devices, print_plan
from cispbench.harness.runs.request import RunRequest

if TYPE_CHECKING:
    from cispbench.harness.cost.devices import Device
    from cispbench.harness.distributed.group import Group
    from cispbench.harness.runs.execute import RunResult
    from cispbench.harness.runs.plan import RunPlan


@dataclass(frozen=True)
class Places:
    """Where a run works, as the command line names it; ``RunPlaces`` is what the run takes."""

    out: Path
    steps_dir: Path | None
    device: str
    loaders: int | None
    wait: float | None
    until: int | None
    compile: bool = False
    tf32: bool = False
    cudnn_benchmark: bool = False


@click.command()
@run_request(
    click.option("--method", required=True, help="Method to train, see `cispbench list methods`."),
    click.option("--setting", required=True, help="<scenario>-<task>, see `cispbench list settings`."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                 help="Seed of all random choices."),
    *RECIPE,
    WEIGHTS,
    DATA_ROOT,
    click.option("--start-from", metavar="KEY", help="Go on from a step that `cispbench import checkpoint` made."),
    click.option("--devices", type=click.IntRange(min=1), metavar="N", help="Number of GPUs that train each step "
                 "(processes, with --device cpu). They share the recipe's batch. [1]"),
    MICRO_BATCH,
)  # fmt: skip
@collected(
    Places, "places", OUT, STEPS_DIR, DEVICE, LOADERS,
    click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS",
                 help="How long to wait for another process that trains the same step. [until it ends]"),
    click.option("--until", type=click.IntRange(min=0), metavar="STEP", help="Stop after this step. [the last one]"),
    click.option("--compile", is_flag=True, help="Compile the networks (torch.compile); rounding differs."),
    click.option("--tf32", is_flag=True, help="Multiply float32 in TF32 on GPUs that can; rounding differs."),
    click.option("--cudnn-benchmark", is_flag=True, help="Let cuDNN choose its algorithms by trial."),
)  # fmt: skip
@PLAN
@ON
@PRINTING
def run(request: RunRequest, places: Places, plan_only: bool, on: str | None, printing: Printing) -> None:
    """Train a method through all steps of a setting.

    At the end it prints the mIoU of old, new and all classes. Without --profile, real data found means `paper` and
    none found means `quick`. The same command again resumes a broken run, and returns at once if it is finished. A
    run that meets 5 losses in a row that are NaN or infinite stops; single ones are skipped, and counted in its
    records.

    \b
    Example:
      cispbench run --method mbs --setting overlapped-15-1
      cispbench run --method mib --setting disjoint-15-5 --data-root /data --set optim.batch=12
      cispbench run --method mbs --setting overlapped-15-1 --devices 4 --micro-batch 3
      cispbench run --method mbs --setting overlapped-100-10 --profile paper --plan --on a100,cpu
    """
    devices = priced_devices(on, plan_only)
    if plan_only:
        _plan(request, places, printing, devices)
        return
    text = run_on_devices(request, places, printing)
    if text:  # of several processes the first one alone has something to say
        click.echo(text)


def _plan(request: RunRequest, places: Places, printing: Printing, devices: tuple[Device, ...] | None) -> None:
    """Print the steps of a run, as a sweep of this run alone would."""
    from cispbench.harness.machine.devices import device_name
    from cispbench.harness.machine.progress import make_view
    from cispbench.harness.runs.step_store import StepStore, default_steps_dir
    from cispbench.harness.sweep.graph import build_graph
    from cispbench.harness.sweep.planning import plan_sweep
    from cispbench.harness.sweep.step_states import StepStates
    from cispbench.results.store import Store

    refuse_given(("until", "wait", "compile", "tf32", "cudnn_benchmark"), "--plan")
    records, steps = Store(places.out), StepStore(places.steps_dir or default_steps_dir())
    with make_view(quiet=printing.quiet or printing.as_json) as view:
        plan = plan_sweep([request], steps, view, plan_only=True)
    states = StepStates(records, steps, device_name(places.device), request.micro_batch, request.devices or 1)
    print_plan(plan, build_graph(plan.runs, states.find), printing, devices, divisible=True)


def run_on_devices(request: RunRequest, places: Places, printing: Printing) -> str:
    """Carry out a run in one process, or in one for each device, and return what is printed.

    The processes are started here, unless this one was started by torchrun as one of several. Returns "" in all
    processes but the first. Raises CispbenchError.
    """
    from cispbench.harness.distributed.group import ALONE, joined, launched, local_rank
    from cispbench.harness.machine.devices import choose_device
    from cispbench.splits.errors import UsageError

    if launched():
        with joined(choose_device(places.device, local_rank())) as group:
            if request.devices not in (None, group.size):
                raise UsageError(
                    f"--devices {request.devices}: {group.size} processes were started.",
                    hint="Leave --devices out: the number of processes decides.",
                )
            return _run(request, places, printing, group, local_rank())
    if request.devices is None or request.devices == 1:
        return _run(request, places, printing, ALONE, None)
    for rank in range(request.devices):
        choose_device(places.device, rank)  # a device that is missing is reported before any process is started
    from cispbench.harness.distributed.launcher import start

    text: str = start(request.devices, run_on_devices, {"request": request, "places": places, "printing": printing})
    return text


def _run(request: RunRequest, places: Places, printing: Printing, group: Group, rank: int | None) -> str:
    from cispbench.harness.machine.acceleration import Acceleration
    from cispbench.harness.machine.devices import choose_device
    from cispbench.harness.machine.progress import ProgressView, make_view
    from cispbench.harness.runs.launch import RunPlaces, launch
    from cispbench.harness.runs.step_store import default_steps_dir
    from cispbench.reports.tables.render import step_line
    from cispbench.results.protocols import load_protocol

    load_protocol(printing.protocol)
    where = RunPlaces(
        places.out, places.steps_dir or default_steps_dir(), choose_device(places.device, rank), places.loaders,
        places.wait, places.until, Acceleration(places.compile, places.tf32, places.cudnn_benchmark),
    )  # fmt: skip
    with make_view(quiet=printing.quiet or printing.as_json) if group.first else ProgressView() as view:
        plan, result = launch(
            request, where, view, group, lambda record: view.end_step(step_line(record, printing.protocol))
        )
    if not group.first:
        return ""
    return _as_json(result, plan, printing.protocol) if printing.as_json else _as_text(result, places.out, printing)


def _as_text(result: RunResult, out: Path, printing: Printing) -> str:
    from cispbench.reports.tables.render import run_table
    from cispbench.results.store import Store

    text = run_table(result.records, printing.protocol, sys.stdout.isatty())
    if result.finished_before:
        text = f"This run was finished before; nothing was trained.\n\n{text}"
    return f"\n{text}\n\nRecords: {Store(out).place(result.records[-1]).parent}"


def _as_json(result: RunResult, plan: RunPlan, protocol: str) -> str:
    from cispbench.results.scores import score

    steps: list[dict[str, Any]] = []
    for record in result.records:
        scores = score(record.matrix(), plan.setting, None if record.joint else record.step, protocol)
        numbers = {name: _without_nan(getattr(scores, name)) for name in ("old", "new", "all", "harmonic")}
        steps.append({"step": record.step, "key": record.key, **numbers})
    return json.dumps(
        {"method": plan.method.title, "setting": plan.setting.name, "seed": plan.seed, "profile": plan.profile,
         "data": plan.data.kind, "protocol": protocol, "run_key": plan.run_key, "trained": result.trained,
         "steps": steps}
    )  # fmt: skip


def _without_nan(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if value != value else value
