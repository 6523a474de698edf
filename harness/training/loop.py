"""The training of one step: one readable loop that serves every method, model and data set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from cispbench.harness.distributed.batch_norm import synchronise
from cispbench.harness.machine.devices import autocast
from cispbench.harness.machine.environment import peak_host_bytes
from cispbench.harness.machine.seeds import derive_seed, seed_everything
from cispbench.harness.method import Batch
from cispbench.harness.training import checkpoint
from cispbench.harness.training.faults import Skips, read_outcomes, require_finite_weights
from cispbench.harness.training.gradients import Gradients, Outcome
from cispbench.harness.training.job import StoppedError, TrainingJob, TrainingLog
from cispbench.harness.training.optimisation import Stepper
from cispbench.splits.classes import class_names

CHECKPOINT_SECONDS = 10.0  # at least this long between two checkpoints,
CHECKPOINT_SHARE = 0.02  # and at most this share of the time spent on them


class StepTraining:
    """One step from its first iteration, or from its last checkpoint, to its last."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.group = job, job.group
        self.division = job.division
        synchronise(job.context.model, job.group, job.device)
        self._begin_anew()
        self._pending: list[Outcome] = []
        self._log_every = max(1, min(10, job.iterations // 25))
        self._next_checkpoint = 0.0
        self._same_chance = True

    def _begin_anew(self) -> None:
        job = self.job
        self.stepper = Stepper(job.context.model, job.phase, job.iterations, job.device)
        self.log, self.iteration = TrainingLog(), 0
        self._skips = Skips(job.context.step, job.iterations)

    def run(self) -> TrainingLog:
        """Train and return the log; Ctrl-C or death leaves the last checkpoint behind.

        Raises StoppedError once ``job.stop`` says so, after a checkpoint; RunError for losses that are no numbers
        again and again (``faults.SKIPPED_IN_A_ROW``).
        """
        job = self.job
        seed_everything(job.seed)
        if job.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(job.device)
        self._started = time.perf_counter()
        if not self._resume():
            self._prepare()
        self._announce()
        job.context.model.train()
        gradients = Gradients(job.method, job.context, job.device, job.phase.precision, self.division, self.group)
        self._mark = time.perf_counter()
        self._next_checkpoint = self._mark + CHECKPOINT_SECONDS
        for batch in self._batches():
            self._pending.append(gradients.take(batch, self.stepper, self.iteration))
            self.iteration += 1
            self.log.images += len(batch.ids) if self.group.size == 1 else job.phase.batch
            self._look()
        job.method.after_training(job.context)
        require_finite_weights(job.context.model, job.context.step, self.iteration)
        self.log.skipped = self.stepper.skipped
        self._note_peaks()
        return self.log

    def _look(self) -> None:
        """Read the losses now and then, save now and then, and leave when asked to; the first process says when."""
        job = self.job
        last = self.iteration == job.iterations
        due = last or self.iteration % self._log_every == 0
        if self.group.size > 1 and not due:
            return
        leaving = not last and job.stop is not None and job.stop()
        if due or leaving:
            self._flush()
        saving = due and not last and time.perf_counter() >= self._next_checkpoint
        leaving, saving = self.group.decide((leaving, saving))
        if leaving or saving:
            self._save()
        if leaving:
            where = f"iteration {self.iteration} of {job.iterations} of step {job.context.step}"
            raise StoppedError(f"stopped as asked, at {where}.", hint="The same command goes on from there.")

    def _prepare(self) -> None:
        """Let the method measure what it needs, on all of the step's data: the first process does it for all."""
        job, group = self.job, self.group
        if group.first:
            with autocast(job.device, job.phase.precision):
                job.method.before_training(job.context, self._on_device(job.loader.epoch(0)))
        if group.size > 1:
            job.loader.close()
            state = group.decide({name: tensor.cpu() for name, tensor in job.method.state_dict().items()})
            if not group.first:
                job.method.load_state_dict({name: tensor.to(job.device) for name, tensor in state.items()})
        seed_everything(job.seed if group.first else derive_seed(job.seed, "process", group.rank))

    def _note_peaks(self) -> None:
        self.log.peak_host_bytes = max(self.log.peak_host_bytes, peak_host_bytes())
        if self.job.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.job.device)
            self.log.peak_device_bytes = max(self.log.peak_device_bytes or 0, peak)

    def _announce(self) -> None:
        context, setting = self.job.context, self.job.context.setting
        names = [class_names(setting.dataset)[number] for number in setting.steps[context.step].classes]
        classes = ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)})"
        self.job.view.start_step(
            context.step, len(setting.steps), classes, self.job.images, self.job.iterations, self.iteration
        )

    def _batches(self) -> Iterator[Batch]:
        loader = self.job.loader
        if self.group.size > 1:
            loader = loader.share(self.division, self.group.rank)
        while self.iteration < self.job.iterations:
            epoch, start = divmod(self.iteration, len(loader))
            for batch in self._on_device(loader.epoch(epoch, start)):
                yield batch
                if self.iteration == self.job.iterations:
                    return

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch.to(self.job.device)

    def _flush(self) -> None:
        """Bring the pending losses to the host: the only place where the loop waits for the device."""
        reads = read_outcomes(self._pending, self.group)
        self._pending.clear()
        now = time.perf_counter()
        self.log.seconds += now - self._mark
        self._mark = now
        for read in reads:
            self._skips.note(read, self.group)
        kept = [read for read in reads if read.kept]
        if self.job.phase.precision != "fp16":  # whose overflows the scaler counts
            self.stepper.skipped += len(reads) - len(kept)
        if not kept:
            return
        means = {}
        for name in dict.fromkeys(name for read in kept for name in read.terms):
            values = [read.terms[name] for read in kept if name in read.terms]
            means[name] = sum(values) / len(values)
        self.log.iterations.append(self.iteration)
        for name, value in means.items():
            self.log.terms.setdefault(name, []).append(value)
        self.job.view.update(self.iteration, means, self.log.images / max(self.log.seconds, 1e-9))

    def _save(self) -> None:
        started = time.perf_counter()
        job = self.job
        require_finite_weights(job.context.model, job.context.step, self.iteration)
        self._note_peaks()
        state = {
            "iteration": self.iteration,
            "model": job.context.model.state_dict(),
            "stepper": self.stepper.state_dict(),
            "method": job.method.state_dict(),
            "log": asdict(self.log) | {"wall_before": self.log.wall_before + started - self._started},
        }
        checkpoint.write_checkpoint(job.checkpoint, state, job.device, self.group)
        self._mark = time.perf_counter()
        cost = self._mark - started
        self._next_checkpoint = self._mark + max(CHECKPOINT_SECONDS, cost / CHECKPOINT_SHARE)

    def _resume(self) -> bool:
        """Take back the checkpoint, if there is a sound one; a damaged one is named and leaves nothing behind."""
        job = self.job
        state = checkpoint.read_checkpoint(job.checkpoint, self.group)
        if state is None:
            return False
        fresh = {name: tensor.clone() for name, tensor in job.context.model.state_dict().items()}
        faults = [fault for fault in self.group.gather(self._restore(state)) if fault]
        if faults:
            job.view.note(f"the checkpoint {job.checkpoint} is damaged ({faults[0]}); the step starts anew")
            job.context.model.load_state_dict(fresh)
            self._begin_anew()
            return False
        where = f"step {job.context.step}: resumed at iteration {self.iteration} of {job.iterations}"
        same = all(self.group.gather(self._same_chance))
        elsewhere = "" if same else ", from a checkpoint of another kind or number of devices: what is random differs"
        job.view.note(where + elsewhere)
        return True

    def _restore(self, state: dict[str, Any] | str) -> str | None:
        """Put a checkpoint to use, and return what is wrong with it."""
        if isinstance(state, str):
            return state
        job = self.job
        try:
            log = state["log"]
            job.context.model.load_state_dict(state["model"])
            self.stepper.load_state_dict(state["stepper"])
            job.method.load_state_dict({name: tensor.to(job.device) for name, tensor in state["method"].items()})
            self.log = TrainingLog(**{**log, "resumed": True})
            self.iteration = int(state["iteration"])
            self._skips.in_all = self.stepper.skipped if job.phase.precision != "fp16" else 0
            self._same_chance = checkpoint.restore_chance(state, job.device, self.group, job.seed)
        except checkpoint.CHECKPOINT_ERRORS as error:
            return checkpoint.first_line(error)
        return None
