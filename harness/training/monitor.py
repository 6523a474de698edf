"""Look after a running training: log its losses, save checkpoints, stop when asked.

None of this happens in every iteration: each of them waits for the device, and several processes also for each other.
"""

from __future__ import annotations

import time

import torch

from cispbench.harness.machine.environment import peak_host_bytes
from cispbench.harness.training.checkpoint import save_checkpoint
from cispbench.harness.training.job import StoppedError, TrainingJob, TrainingLog
from cispbench.harness.training.nonfinite import DeviceLosses, read_losses, reason, require_finite_weights
from cispbench.harness.training.state import TrainingState

CHECKPOINT_SECONDS = 10.0  # at least this long between two checkpoints,
CHECKPOINT_SHARE = 0.02  # and at most this share of the time spent on them


class Monitor:
    """Called by the loop after every iteration; ``started``: when the training did, by ``time.perf_counter``."""

    def __init__(self, job: TrainingJob, state: TrainingState, started: float) -> None:
        self._job, self._state, self._started = job, state, started
        self._pending: list[DeviceLosses] = []
        self._log_every = max(1, min(10, job.iterations // 25))
        self._mark = time.perf_counter()
        self._next_checkpoint = self._mark + CHECKPOINT_SECONDS

    def after_iteration(self, losses: DeviceLosses) -> None:
        """Note the losses; now and then log them, save a checkpoint, or stop.

        Raises RunError for too many losses that are NaN, or for weights that are; StoppedError when asked to stop.
        """
        job, group, iteration = self._job, self._job.group, self._state.iteration
        self._pending.append(losses)
        self._state.log.images += len(losses.ids) if group.size == 1 else job.phase.batch
        last = iteration == job.iterations
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
            where = f"iteration {iteration} of {job.iterations} of step {job.context.step}"
            raise StoppedError(f"stopped as asked, at {where}.", hint="The same command goes on from there.")

    def finish(self) -> TrainingLog:
        """Return the log of the finished training."""
        self._state.log.skipped = self._state.skipped
        self._note_peaks()
        return self._state.log

    def _log_losses(self) -> None:
        """Read the pending losses, and log their means over the iterations that are finite."""
        job, log, iteration = self._job, self._state.log, self._state.iteration
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
        logged = [losses.terms for losses in read if losses.finite]
        if not logged:
            return
        means = {}
        for name in dict.fromkeys(name for terms in logged for name in terms):
            values = [terms[name] for terms in logged if name in terms]
            means[name] = sum(values) / len(values)
        log.iterations.append(iteration)
        for name, value in means.items():
            log.terms.setdefault(name, []).append(value)
        job.view.update(iteration, means, log.images / max(log.seconds, 1e-9))

    def _save(self) -> None:
        started = time.perf_counter()
        job = self._job
        require_finite_weights(job.context.model, job.context.step, self._state.iteration)
        self._note_peaks()
        save_checkpoint(job, self._state, started - self._started)
        self._mark = time.perf_counter()
        self._next_checkpoint = self._mark + max(CHECKPOINT_SECONDS, (self._mark - started) / CHECKPOINT_SHARE)

    def _note_peaks(self) -> None:
        log = self._state.log
        log.peak_host_bytes = max(log.peak_host_bytes, peak_host_bytes())
        if self._job.device.type == "cuda":
            log.peak_device_bytes = max(log.peak_device_bytes or 0, torch.cuda.max_memory_allocated(self._job.device))
