"""Look after a running training: log its losses, save checkpoints, stop when asked.

None of this happens in every iteration: each of them waits for the device, and several processes also for each other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from cispbench.harness.machine.environment import peak_host_bytes
from cispbench.harness.training.checkpoint import save_checkpoint
from cispbench.harness.training.job import StoppedError, TrainingJob, TrainingLog
from cispbench.harness.training.nonfinite import DeviceLosses, read_losses, reason, require_finite_weights
from cispbench.harness.training.state import TrainingState

CHECKPOINT_SECONDS = 10.0  # at least this long between two checkpoints,
CHECKPOINT_SHARE = 0.02  # and at most this share of the time spent on them


class Monitor:
    """Called by the loop after every iteration, and between phases; ``started``: when the training did.

    Times are those of ``time.perf_counter``.
    """

    def __init__(self, job: TrainingJob, state: TrainingState, started: float) -> None:
        self._job, self._state, self._started = job, state, started
        self._pending: list[DeviceLosses] = []
        self._mark = time.perf_counter()
        self._next_checkpoint = self._mark + CHECKPOINT_SECONDS

    def start_phase(self, *, measured: bool) -> None:
        """Take what follows for the iterations of a phase; save what was ``measured`` for it, if that took long."""
        self._log_every = max(1, min(10, self._state.phase.iterations // 25))
        saving = measured and self._state.iteration == 0 and time.perf_counter() >= self._next_checkpoint
        if self._job.group.decide(saving):
            self._save()
        self._mark = time.perf_counter()

    def between_phases(self) -> None:
        """Save a checkpoint that says which phase is next, and stop if asked to."""
        self._save()
        stopping = self._job.group.decide(self._job.stop is not None and self._job.stop())
        if stopping:
            raise self._stopped(f"before the phase {self._state.phase.name}")

    def after_iteration(self, losses: DeviceLosses) -> None:
        """Note the losses; now and then log them, save a checkpoint, or stop.

        Raises RunError for too many losses that are NaN, or for weights that are; StoppedError when asked to stop.
        """
        job, group, iteration, phase = self._job, self._job.group, self._state.iteration, self._state.phase
        self._pending.append(losses)
        self._state.log.images += len(losses.ids) if group.size == 1 else phase.recipe.batch
        last = iteration == phase.iterations
        logging = last or iteration % self._log_every == 0
        if group.size > 1 and not logging:
            return  # The processes must agree on what follows, and agreeing in every iteration would be slow.
        stopping = not last and job.stop is not None and job.stop()
        if logging or stopping:
            self._log_losses()
        saving = logging and not last and time.perf_counter() >= self._next_checkpoint
        stopping, saving = group.decide((stopping, saving))
        if stopping or saving:
            self._save()
        if stopping:
            raise self._stopped(f"at iteration {self._state.done} of {self._state.iterations}")

    def _stopped(self, where: str) -> StoppedError:
        place = f"{where} of step {self._job.context.step}"
        return StoppedError(f"stopped as asked, {place}.", hint="The same command goes on from there.")

    def finish(self) -> TrainingLog:
        """Return the log of the finished training."""
        self._state.log.skipped = self._state.skipped
        self._note_peaks()
        return self._state.log

    def _log_losses(self) -> None:
        """Read the pending losses, and log their means over the iterations that are finite."""
        job, log, iteration = self._job, self._state.log, self._state.done
        read = read_losses(self._pending, job.group)
        self._pending.clear()
        # Only now has the device done these iterations: the time up to here is theirs.
        now = time.perf_counter()
        log.seconds += now - self._mark
        self._mark = now
        skips = self._state.skipped_iterations
        for losses in read:
            skips.count(losses, job.group)
            if not losses.finite and skips.in_all == 1:
                job.view.warn(
                    f"step {job.context.step}: {reason(losses)} at iteration {losses.iteration}; such an update is "
                    "left out, and the record counts them"
                )
        finite = [losses for losses in read if losses.finite]
        if not finite:
            return
        terms, notes = _means([losses.terms for losses in finite]), _means([losses.notes for losses in finite])
        log.add(iteration, terms, notes)
        job.view.update(iteration, terms, log.images / max(log.seconds, 1e-9))

    def _save(self) -> None:
        started = time.perf_counter()
        job = self._job
        require_finite_weights(job.context.model, job.context.step, self._state.done)
        self._note_peaks()
        save_checkpoint(job, self._state, started - self._started)
        self._mark = time.perf_counter()
        self._next_checkpoint = self._mark + max(CHECKPOINT_SECONDS, (self._mark - started) / CHECKPOINT_SHARE)

    def _note_peaks(self) -> None:
        log = self._state.log
        log.peak_host_bytes = max(log.peak_host_bytes, peak_host_bytes())
        if self._job.device.type == "cuda":
            log.peak_device_bytes = max(log.peak_device_bytes or 0, torch.cuda.max_memory_allocated(self._job.device))


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return each name's mean over the iterations that have it."""
    means = {}
    for name in dict.fromkeys(name for values in found for name in values):
        values = [one[name] for one in found if name in one]
        means[name] = sum(values) / len(values)
    return means
