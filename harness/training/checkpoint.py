"""The checkpoint of a step that is being trained: written by the first process, read back by all of them."""

from __future__ import annotations

import io
import pickle
from dataclasses import asdict
from typing import Any

import torch

from cispbench.harness.machine.seeds import derive_seed, random_states, restore_random_states, seed_everything
from cispbench.harness.training.job import TrainingJob, TrainingLog
from cispbench.harness.training.state import TrainingState
from cispbench.results.atomic import write_atomic

# What torch and our own code were seen to raise for a damaged checkpoint, or for that of another model or method.
CHECKPOINT_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    pickle.PickleError,
)


def save_checkpoint(job: TrainingJob, state: TrainingState, wall_seconds: float) -> None:
    """Write all that a resumed training needs, with the RNG states of every process. All processes call it.

    ``wall_seconds``: the time since this training started.
    """
    first, *others = job.group.gather(random_states(job.device))
    if not job.group.first:
        return
    content = {
        "iteration": state.iteration,
        "model": job.context.model.state_dict(),
        "stepper": state.stepper.state_dict() | {"skipped": state.skipped},
        "method": job.method.state_dict(),
        "log": asdict(state.log) | {"wall_before": state.log.wall_before + wall_seconds},
        "random": first,
        "random_of_others": others,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(job.checkpoint, buffer.getvalue())


def resume(job: TrainingJob) -> TrainingState | None:
    """Restore model, method and RNG states from the checkpoint, and return the training's state.

    Without a checkpoint it returns None. So it does with a damaged one, after a note to the user; the model is then
    as it was before. All processes call it, and all resume or none does.
    """
    content = _read(job)
    if content is None:
        return None
    model = job.context.model
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, fault, same_draws = TrainingState(job), None, False
    try:
        if isinstance(content, str):
            fault = content
        else:
            same_draws = _restore(job, state, content)
    except CHECKPOINT_ERRORS as error:
        fault = _first_line(error)
    found = job.group.gather((fault, same_draws))
    faults = [fault for fault, _ in found if fault]
    if faults:
        job.view.note(f"the checkpoint {job.checkpoint} is damaged ({faults[0]}); the step starts anew")
        model.load_state_dict(fresh)
        return None
    where = f"step {job.context.step}: resumed at iteration {state.iteration} of {job.iterations}"
    same = all(same for _, same in found)
    job.view.note(
        where if same else f"{where}, from a checkpoint of another kind or number of devices: what is random differs"
    )
    return state


def _read(job: TrainingJob) -> dict[str, Any] | str | None:
    """Return what the first process reads: the content, None if there is no file, or what is wrong with it."""
    content: dict[str, Any] | str | None = None
    if job.group.first and job.checkpoint.exists():
        try:
            content = torch.load(job.checkpoint, map_location="cpu", weights_only=True)
        except CHECKPOINT_ERRORS as error:
            content = _first_line(error)
    return job.group.decide(content)


def _restore(job: TrainingJob, state: TrainingState, content: dict[str, Any]) -> bool:
    """Restore everything; return whether the random draws to come are those of an uninterrupted training."""
    log = content["log"]
    job.context.model.load_state_dict(content["model"])
    state.stepper.load_state_dict(content["stepper"])
    job.method.load_state_dict({name: tensor.to(job.device) for name, tensor in content["method"].items()})
    state.log = TrainingLog(**{**log, "resumed": True})
    state.iteration = int(content["iteration"])
    state.skipped = int(content["stepper"]["skipped"])
    return _restore_rng_states(job, content)


def _restore_rng_states(job: TrainingJob, content: dict[str, Any]) -> bool:
    states, rank = [content["random"], *content.get("random_of_others", [])], job.group.rank
    if rank < len(states) and (states[rank]["cuda"] is None) == (job.device.type != "cuda"):
        restore_random_states(states[rank], job.device)
        return len(states) == job.group.size
    # The checkpoint has no state for this process, or that of another kind of device. The iteration is part of the
    # new seed: a process that resumes twice must not draw the same numbers twice.
    seed_everything(derive_seed(job.seed, "process", rank, content["iteration"]))
    return False


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
