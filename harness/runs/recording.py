"""The two descriptions of a finished step: its manifest in the step store, and its record among the results.

The manifest describes the training, and is written once. A record adds an evaluation, and each run that shares the
step has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from cispbench.harness.machine.environment import describe_environment, describe_git
from cispbench.harness.method import Method
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.recipes.quirks import quirks_in_force
from cispbench.harness.registry import describe_package
from cispbench.harness.runs.plan import PlannedStep, RunPlan
from cispbench.harness.training.job import TrainingLog
from cispbench.results.record import SCHEMA, StepRecord
from cispbench.results.record_fields import (
    DataUsed,
    Execution,
    ExemplarsUsed,
    GitState,
    Losses,
    Memory,
    MethodUsed,
    ModelUsed,
    Timing,
    TrainedFor,
)


def step_manifest(
    model: IncrementalModel, log: TrainingLog, device: str, *, iterations: int = 0, seconds: float = 0.0
) -> dict[str, Any]:
    """Return what the training of a step was and cost, for whoever uses the step later.

    ``iterations``: of the step; ``seconds``: in all, from its beginning. A step that was not trained here has none of
    either, and an empty log. The caller adds ``previous_key`` and where the step comes from.
    """
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "iterations": iterations,
        "losses": {"iterations": log.iterations, "terms": log.terms},
        **({"notes": log.notes} if log.notes else {}),
        "train_seconds": log.seconds,
        "wall_seconds": seconds,
        "images_per_second": log.images / max(log.seconds, 1e-9),  # 0 for a step that was not trained here
        "resumed": log.resumed,
        "skipped_steps": log.skipped,
        "peak_host_bytes": log.peak_host_bytes,
        "peak_device_bytes": log.peak_device_bytes,
        "environment": describe_environment(device),
        "git": dict(describe_git()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def trained_here(plan: RunPlan, planned: PlannedStep, execution: Execution) -> dict[str, Any]:
    """Return what a manifest says of a step's origin: what its key is made of, and the run it was trained for."""
    return {
        "previous_key": planned.previous_key,
        "made_of": dict(planned.made_of),
        "method_code": plan.method.code,
        # What comes with cispbench is described by the version and the commit of cispbench.
        "method_package": None if plan.method.built_in else describe_package(plan.method.name),
        "trained_for": asdict(TrainedFor(plan.method.name, plan.setting.name, plan.seed, plan.run_key)),
        "execution": asdict(execution),
    }


def step_record(
    plan: RunPlan, planned: PlannedStep, method: type[Method], tested: Mapping[str, Any], made: Mapping[str, Any]
) -> StepRecord:
    """Return a run's record of a step, from its plan, its evaluation (``tested``) and its manifest (``made``)."""
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
        method=MethodUsed(plan.method.name, plan.method.version, dict(plan.method.options), made.get("method_code")),
        joint=plan.method.joint,
        profile=plan.profile,
        model=ModelUsed(plan.recipe.model, made["parameters"], plan.recipe.weights or "none", plan.weights.sha256),
        seed=plan.seed,
        data=DataUsed(
            plan.data.kind, plan.data.fingerprint, len(planned.images), tested["images"], planned.list_sha256
        ),
        recipe=plan.recipe.as_recorded(),
        confusion=tested["confusion"],
        losses=Losses(tuple(losses["iterations"]), {name: tuple(v) for name, v in losses["terms"].items()}),
        iterations=made["iterations"],
        timing=_timing(tested, made),
        memory=Memory(made["peak_host_bytes"], made["peak_device_bytes"]),
        skipped_steps=made["skipped_steps"],
        environment={**made["environment"], **_package(made)},
        git=GitState(**made["git"]),
        quirks=_quirks(plan, planned, method, made),
        created=made["created"],
        # Imported steps have neither, nor have manifests of earlier versions.
        execution=Execution(**made.get("execution", {"devices": 1, "micro_batch": None})),
        trained_for=TrainedFor(**made["trained_for"]) if "trained_for" in made else None,
        origin="measured",
        exemplars=ExemplarsUsed(**made["exemplars"]) if made.get("exemplars") else None,
        supervision=_supervision(plan, planned),
    )


def _quirks(plan: RunPlan, planned: PlannedStep, method: type[Method], made: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the quirks that shaped the step."""
    if "imported" in made:  # nothing is known of it
        return ()
    # A shared base is trained without the method, so that the options of the method have no effect on it.
    quirks = quirks_in_force(method, plan.setting, plan.recipe)
    own = plan.method.trains(planned.step)
    return tuple(quirk.name for quirk in quirks if own or not quirk.option.startswith("method."))


def _supervision(plan: RunPlan, planned: PlannedStep) -> tuple[str, ...]:
    """Return the names of the companions that the step was trained or tested with."""
    trained = planned.made_of.get("companions", {})
    return tuple(one.name for one in plan.method.companions if one.at_test or one.name in trained)


def _package(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return the package of the method that the step was trained for, where it is another than cispbench."""
    return {} if made.get("method_package") is None else {"method_package": made["method_package"]}


def _timing(tested: Mapping[str, Any], made: Mapping[str, Any]) -> Timing:
    return Timing(
        train_seconds=made["train_seconds"],
        evaluate_seconds=tested["seconds"],
        wall_seconds=made["wall_seconds"] + tested["seconds"],
        images_per_second=made["images_per_second"],
        resumed=made["resumed"],
    )
