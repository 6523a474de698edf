"""From the command line's words to a run, and from its records to what is printed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cispbench.harness.data.source import locate
from cispbench.harness.distributed.group import ALONE, Group, joined, launched, local_rank
from cispbench.harness.machine.devices import choose_device
from cispbench.harness.machine.environment import emulates_bf16, usable_cores
from cispbench.harness.machine.progress import ProgressView, make_view
from cispbench.harness.method import Method
from cispbench.harness.recipes.fields import Recipe, load_strict
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.registry import load_method
from cispbench.harness.runs.execute import RunOptions, RunResult, execute
from cispbench.harness.runs.imported import IMPORTED, ImportedStep, find_imported
from cispbench.harness.runs.inputs import fit_weights, open_source
from cispbench.harness.runs.plan import RunPlan, parts_note, plan_run
from cispbench.harness.runs.step_store import StepStore, default_steps_dir
from cispbench.harness.runs.weights_choice import WeightsChoice, check_weights, choose_weights
from cispbench.reports.tables.render import run_table, step_line
from cispbench.results.protocols import load_protocol
from cispbench.results.record import StepRecord
from cispbench.results.scores import score
from cispbench.results.store import Store
from cispbench.splits.datasets import dataset
from cispbench.splits.errors import MethodError, SettingError, UsageError
from cispbench.splits.settings import Setting, parse_setting

BANNER = """\
No {title} found ({places}): this run uses the built-in synthetic scenes (profile quick).
Its numbers show that everything works and how methods differ; they are NOT comparable with published ones.
For the real thing: cispbench run ... --data-root FOLDER (see "Data" in the README)."""


def launch(*, device: str, devices: int | None = None, **choices: Any) -> str:
    """Run ``cispbench run`` and return the text for standard output, "" in all processes but the first.

    ``devices``: how many processes share every step, started here unless this is one of them. Raises CispbenchError.
    """
    if launched():
        with joined(choose_device(device, local_rank())) as group:
            if devices not in (None, group.size):
                raise UsageError(f"--devices {devices}: {group.size} processes were started.", hint="Leave it out.")
            return _run(group=group, where=choose_device(device, local_rank()), **choices)
    if devices is None or devices == 1:
        return _run(group=ALONE, where=choose_device(device), **choices)
    for rank in range(devices):
        choose_device(device, rank)
    from cispbench.harness.distributed.launcher import start

    text: str = start(devices, launch, {"device": device, "devices": devices, **choices})
    return text


def _run(
    *, method: str, setting: str, seed: int, profile: str | None, model: str | None, weights: str | None,
    data_root: Path | None, overrides: Sequence[str], out: Path, steps_dir: Path | None, where: torch.device,
    workers: int | None, wait: float | None, protocol: str, quiet: bool, as_json: bool, group: Group,
    start_from: str | None = None, until: int | None = None, micro_batch: int | None = None,
) -> str:  # fmt: skip
    load_protocol(protocol)
    _share_cores(group, where)
    chosen = parse_setting(setting)
    if chosen.scenario == "partitioned":
        raise SettingError(
            f"{chosen.name}: MiB's partition was drawn with a seed that is lost, and its image lists are not shipped.",
            hint="Use overlapped or disjoint.",
        )
    if until is not None and until > chosen.last_step:
        raise UsageError(f"--until {until}: the last step of {chosen.name} is {chosen.last_step}.")
    cls = load_method(method)
    steps = StepStore(steps_dir or default_steps_dir())
    with make_view(quiet=quiet or as_json or not group.first) as view:
        falls_back = profile is None and data_root is None and locate(chosen.dataset, None) is None
        profile = profile or ("quick" if falls_back else "paper")
        recipe = load_recipe(cls, chosen, profile, model, overrides)
        worker = cls(load_strict(cls.Options, recipe.method, "method"))
        reason = worker.unsupported(chosen, recipe.model)
        if reason is not None:
            raise MethodError(f"{method} cannot run {chosen.name} with {recipe.model}: {reason}")
        start = _start(start_from, until, steps, chosen, worker, recipe, weights)
        if start is not None and start.step == 0 and not worker.shared_base:
            view.note(f"{method} trains step 0 with a loss of its own: the checkpoint should be one of {method}'s")
        if start is None:
            check_weights(weights or recipe.weights, recipe.model)
        with group.in_turn():
            source = open_source(chosen, profile, data_root, steps.root, view)
            if start is None:
                choice = choose_weights(
                    weights or recipe.weights, recipe.model, steps.root / "weights", named=bool(weights)
                )
        if start is None:
            recipe = fit_weights(recipe, choice, profile, overrides, view)
        else:
            choice = WeightsChoice(f"{IMPORTED}{start.code}", start.sha256)
            recipe = replace(recipe, weights=choice.label)
        plan = plan_run(setting=chosen, method=worker, recipe=recipe, profile=profile, seed=seed, source=source,
                        weights_sha256=choice.sha256, start=start, devices=group.size,
                        micro_batch=micro_batch)  # fmt: skip
        parts = parts_note(plan, group.size, micro_batch)
        if parts is not None:
            view.note(parts)
        _note_precision(plan, where, view)
        options = RunOptions(
            records=Store(out), steps=steps, device=where, view=view, workers=_workers(workers, where), wait=wait,
            load_encoder=choice.load, on_step=lambda record: view.end_step(step_line(record, protocol)), until=until,
            group=group, micro_batch=micro_batch,
        )  # fmt: skip
        if falls_back:
            view.note(_banner(chosen))
        result = execute(plan, options)
    if not group.first:
        return ""
    return _as_json(result, plan, protocol) if as_json else _as_text(result, plan, out, protocol)


def _start(
    prefix: str | None, until: int | None, steps: StepStore, setting: Setting, method: Method, recipe: Recipe,
    weights: str | None,
) -> ImportedStep | None:  # fmt: skip
    """Return the imported step that the run goes on from. Raises UsageError where the two do not fit."""
    if prefix is None:
        return None
    if weights is not None:
        raise UsageError(
            f"--start-from brings all weights; --weights {weights} would be ignored.", hint="Leave it out."
        )
    if method.joint:
        raise UsageError(f"{method.name} learns all classes in a single step and goes on from none.")
    start = find_imported(steps, prefix)
    reason = start.unfit(setting, recipe.model, recipe.data.crop)
    if reason is not None:
        raise UsageError(f"the run cannot go on from the imported step {start.key[:10]}: {reason}.")
    if until is not None and until < start.step:
        raise UsageError(f"--until {until}: the run starts at step {start.step}, the imported one.")
    return start


def _share_cores(group: Group, where: torch.device) -> None:
    """Let each of several processes on the CPU compute in as many threads as there are cores for it."""
    if group.size > 1 and where.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores()[0] // group.size))


def _note_precision(plan: RunPlan, where: torch.device, view: ProgressView) -> None:
    """Say where a precision costs time instead of saving it."""
    precisions = {plan.recipe.phase(step.step).precision for step in plan.steps}
    if where.type == "cpu" and "bf16" in precisions and emulates_bf16():
        view.note(
            "optim.precision=bf16: this processor has no bf16 arithmetic and emulates it, many times slower than "
            "float32 (--set optim.precision=fp32)"
        )


def _banner(setting: Setting) -> str:
    places = f"CISPBENCH_DATA: {os.environ.get('CISPBENCH_DATA') or 'not set'}, ./data: nothing of it"
    return BANNER.format(title=dataset(setting.dataset).title, places=f"--data-root: not given, {places}")


def _workers(asked: int | None, device: torch.device) -> int:
    if asked is not None:
        return asked
    return min(8, len(os.sched_getaffinity(0))) if device.type == "cuda" else 0


def _as_text(result: RunResult, plan: RunPlan, out: Path, protocol: str) -> str:
    text = run_table(result.records, protocol)
    if result.finished_before:
        text = f"This run was finished before; nothing was trained.\n\n{text}"
    last: StepRecord = result.records[-1]
    return f"\n{text}\n\nRecords: {Store(out).place(last).parent}"


def _as_json(result: RunResult, plan: RunPlan, protocol: str) -> str:
    steps: list[dict[str, Any]] = []
    for record in result.records:
        scores = score(record.matrix(), plan.setting, None if record.joint else record.step, protocol)
        numbers = {name: _finite(getattr(scores, name)) for name in ("old", "new", "all", "harmonic")}
        steps.append({"step": record.step, "key": record.key, **numbers})
    return json.dumps(
        {"method": plan.method.name, "setting": plan.setting.name, "seed": plan.seed, "profile": plan.profile,
         "data": plan.source.kind, "protocol": protocol, "run_key": plan.run_key, "trained": result.trained,
         "steps": steps}
    )  # fmt: skip


def _finite(value: float) -> float | None:
    return None if value != value else value
