"""The checkpoint of a step that is being trained: written by the first process, read back by all of them.

A damaged checkpoint is told by its checksum (``checkpoint_file.py``), before anything of the training is changed. If a
sound one cannot be taken back, the code is at fault, and the training ends with an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from cispbench.harness.machine.damaged import set_aside
from cispbench.harness.machine.seeds import derive_seed, random_states, restore_random_states, seed_everything
from cispbench.harness.training.checkpoint_file import DamagedCheckpointError, read_checkpoint, write_checkpoint
from cispbench.harness.training.job import TrainingJob, TrainingLog
from cispbench.harness.training.other_code import is_other_code
from cispbench.harness.training.state import TrainingState
from cispbench.splits.errors import CispbenchError, MethodError, RunError, describe_error


def save_checkpoint(job: TrainingJob, state: TrainingState, wall_seconds: float) -> None:
    """Write all that a resumed training needs, with the RNG states of every process. All processes call it.

    ``wall_seconds``: the time since this training started.
    """
    first, *others = job.group.gather(random_states(job.device))
    if not job.group.first:
        return
    content = {
        "key": job.key,
        "code": [job.method.name, job.code],
        "phase": state.phase.name,
        "iteration": state.iteration,
        "overflows_before": state.overflows_before,
        "model": job.context.model.state_dict(),
        "stepper": None if state.stepper is None else state.stepper.state_dict(),  # None: the phase is not begun
        "nonfinite": state.skipped_iterations.state_dict(),
        "method": job.method.state_dict(),
        "log": asdict(state.log) | {"wall_before": state.log.wall_before + wall_seconds},
        "generator": state.generator.get_state(),
        "random": first,
        "random_of_others": others,
    }
    write_checkpoint(job.checkpoint, content)


def resume(job: TrainingJob) -> TrainingState | None:
    """Restore model, method and RNG states from the checkpoint, and return the training's state.

    Without a checkpoint it returns None. So it does with a damaged one, with one of another step and with one of other
    code of the method, which it sets aside and tells the user. All processes call it, and all resume or none does.
    Raises MethodError or RunError, in all processes, for a sound checkpoint that the method or the network cannot take
    back.
    """
    content = job.group.decide(_read(job) if job.group.first else None)
    if content is None:
        return None
    state, same_draws = TrainingState(job), False
    fault: CispbenchError | None = None
    try:
        same_draws = _restore(job, state, content)
    except CispbenchError as error:
        fault = error
    found = job.group.gather((same_draws, fault))
    for _, error_of_one in found:
        if error_of_one is not None:
            raise error_of_one
    where = f"step {job.context.step}: resumed at iteration {state.done} of {state.iterations}"
    same = all(same for same, _ in found)
    job.view.note(
        where if same else f"{where}, from a checkpoint of another kind or number of devices: what is random differs"
    )
    return state


def _read(job: TrainingJob) -> dict[str, Any] | None:
    """Return the content of the checkpoint, None if there is none that is sound, of this step and of this code."""
    try:
        with _explained(job, RunError, "it cannot be read"):
            content = read_checkpoint(job.checkpoint)
    except DamagedCheckpointError as error:
        _start_anew(job, f"is damaged ({error})")
        return None
    if content is not None and content.get("key") != job.key:
        _start_anew(job, "is that of another step")
        return None
    now = job.method.name, job.code
    # Half a step each of two codes would be a result of neither.
    if content is not None and is_other_code(now, content.get("code", (None, None))):
        _start_anew(job, f"was written by other code of {job.method.name}")
        return None
    return content


def _start_anew(job: TrainingJob, why: str) -> None:
    aside = set_aside(job.checkpoint)
    job.view.warn(f"the checkpoint {job.checkpoint} {why}. It is kept as {aside.name} and the step starts anew.")


def _restore(job: TrainingJob, state: TrainingState, content: dict[str, Any]) -> bool:
    """Restore everything; return whether the random draws to come are those of an uninterrupted training."""
    with _explained(job, RunError, "it does not fit this version of the training"):
        number = list(job.phases).index(content["phase"])
        state.go_to(number, int(content["iteration"]), int(content["overflows_before"]))
    with _explained(job, RunError, "it does not fit the network and its optimiser"):
        job.context.model.load_state_dict(content["model"])
        if content["stepper"] is not None:
            state.begin_phase()
            if state.stepper is None:
                raise ValueError("it has an optimiser, and its phase has none")
            state.stepper.load_state_dict(content["stepper"])
    with _explained(job, MethodError, f"the method {job.method.name} cannot take its state back"):
        job.method.load_state_dict({name: tensor.to(job.device) for name, tensor in content["method"].items()})
    with _explained(job, RunError, "it does not fit this version of the training"):
        state.skipped_iterations.load_state_dict(content["nonfinite"])
        state.log = TrainingLog(**{**content["log"], "resumed": True})
        state.generator.set_state(content["generator"])
        return _restore_rng_states(job, state, content)


@contextmanager
def _explained(job: TrainingJob, kind: type[CispbenchError], what: str) -> Iterator[None]:
    """Raise ``kind``, naming the checkpoint, for whatever the block raises: its methods and networks are anybody's."""
    try:
        yield
    except (CispbenchError, DamagedCheckpointError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise kind(
            f"the checkpoint {job.checkpoint} is not damaged, but {what}: {describe_error(error)}.",
            hint="If the code has changed, raise its version: the step then has another key. To start this step anew, "
            "delete the checkpoint.",
        ) from error


def _restore_rng_states(job: TrainingJob, state: TrainingState, content: dict[str, Any]) -> bool:
    states, rank = [content["random"], *content.get("random_of_others", [])], job.group.rank
    if rank < len(states) and (states[rank]["cuda"] is None) == (job.device.type != "cuda"):
        restore_random_states(states[rank], job.device)
        return len(states) == job.group.size
    # The checkpoint has no state for this process, or that of another kind of device. The iteration is part of the
    # new seed: a process that resumes twice must not draw the same numbers twice.
    seed_everything(derive_seed(state.phase.seed(job), "process", rank, state.iteration))
    return False
