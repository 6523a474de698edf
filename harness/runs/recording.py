"""What a finished step tells of itself: its manifest in the step store, and its record among the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from cispbench.harness.machine.environment import describe_environment, describe_git
from cispbench.harness.method import Method
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.recipes.quirks import quirks_in_force
from cispbench.harness.runs.plan import PlannedStep, RunPlan
from cispbench.harness.training.job import TrainingLog
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
    TrainedFor,
)


def step_manifest(
    plan: RunPlan,
    planned: PlannedStep,
    model: IncrementalModel,
    log: TrainingLog,
    iterations: int,
    seconds: float,
    device: torch.device,
    execution: Execution,
) -> dict[str, Any]:
    """Return what the training of a step was and cost, for whoever uses the step later; ``seconds`` in all."""
    return {
        "schema": 1,
        "previous_key": planned.previous_key,
        "made_of": dict(planned.made_of),
        "trained_for": asdict(TrainedFor(plan.method.name, plan.setting.name, plan.seed, plan.run_key)),
        "execution": asdict(execution),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "iterations": iterations,
        "losses": {"iterations": log.iterations, "terms": log.terms},
        "train_seconds": log.seconds,
        "wall_seconds": seconds,
        "images_per_second": log.images / max(log.seconds, 1e-9),
        "resumed": log.resumed,
        "skipped_steps": log.skipped,
        "peak_host_bytes": log.peak_host_bytes,
        "peak_device_bytes": log.peak_device_bytes,
        "environment": describe_environment(str(device)),
        "git": dict(describe_git()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def step_record(
    plan: RunPlan, planned: PlannedStep, method: type[Method], tested: Mapping[str, Any], made: Mapping[str, Any]
) -> StepRecord:
    """Return the record of a step from its plan, its evaluation (``tested``) and its manifest (``made``)."""
    setting, losses = plan.setting, made["losses"]
    return StepRecord(
        schema=SCHEMA,
        key=planned.key,
        previous_key=planned.previous_key,
        run_key=plan.run_key,
        setting=setting.name,
        dataset=setting.dataset,
        scenario=setting.scenario,
        task=setting.task,
        order=setting.order,
        learning_order=setting.learning_order,
        step=planned.step,
        steps=len(plan.learnt.steps),
        classes=plan.learnt.steps[planned.step].classes,
        method=MethodUsed(plan.method.name, plan.method.version, dict(plan.method.options)),
        joint=plan.method.joint,
        profile=plan.profile,
        model=ModelUsed(plan.recipe.model, made["parameters"], plan.recipe.weights or "none", plan.weights.sha256),
        seed=plan.seed,
        data=DataUsed(
            plan.data.kind, plan.data.fingerprint, len(planned.images), tested["images"], planned.list_sha256
        ),
        recipe=plan.recipe.as_dict(),
        confusion=tested["confusion"],
        losses=Losses(tuple(losses["iterations"]), {name: tuple(v) for name, v in losses["terms"].items()}),
        iterations=made["iterations"],
        timing=_timing(tested, made),
        memory=Memory(made["peak_host_bytes"], made["peak_device_bytes"]),
        skipped_steps=made["skipped_steps"],
        environment=made["environment"],
        git=GitState(**made["git"]),
        quirks=_quirks(plan, planned, method, made),
        created=made["created"],
        # Neither is known of an imported step, nor in a manifest from before they were noted.
        execution=Execution(**made.get("execution", {"devices": 1, "micro_batch": None})),
        trained_for=TrainedFor(**made["trained_for"]) if "trained_for" in made else None,
        origin="measured",
    )


def _quirks(plan: RunPlan, planned: PlannedStep, method: type[Method], made: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the quirks that shaped the step: none is known of an imported one, no method's in a shared base."""
    if "imported" in made:
        return ()
    plain = planned.step == 0 and plan.method.shared_base
    quirks = quirks_in_force(method, plan.setting, plan.recipe)
    return tuple(quirk.name for quirk in quirks if not (plain and quirk.option.startswith("method.")))


def _timing(tested: Mapping[str, Any], made: Mapping[str, Any]) -> Timing:
    return Timing(
        train_seconds=made["train_seconds"],
        evaluate_seconds=tested["seconds"],
        wall_seconds=made["wall_seconds"] + tested["seconds"],
        images_per_second=made["images_per_second"],
        resumed=made["resumed"],
    )
