"""The training of one step: one readable loop that serves every method, model and data set."""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from cispbench.harness.data.loader import TrainLoader
from cispbench.harness.environment import peak_host_bytes
from cispbench.harness.method import Batch, Method, StepContext
from cispbench.harness.optimisation import Stepper, autocast
from cispbench.harness.progress import ProgressView
from cispbench.harness.recipe import OptimRecipe
from cispbench.harness.seeds import random_states, restore_random_states, seed_everything
from cispbench.results.atomic import write_atomic
from cispbench.splits.classes import class_names
from cispbench.splits.errors import MethodError, RunError

CHECKPOINT_SECONDS = 10.0  # at least this long between two checkpoints,
CHECKPOINT_SHARE = 0.02  # and at most this share of the time spent on them
# What reading a damaged checkpoint, or putting a foreign one to use, was seen to raise.
CHECKPOINT_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    pickle.PickleError,
)


@dataclass
class TrainingLog:
    """What a training leaves to be told: losses over time, and its cost."""

    iterations: list[int] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0  # of the iterations alone
    wall_before: float = 0.0  # all seconds of earlier, interrupted trainings of the step
    images: int = 0
    resumed: bool = False
    skipped: int = 0
    peak_host_bytes: int = 0
    peak_device_bytes: int | None = None


@dataclass(frozen=True)
class TrainingJob:
    """All that the training of one step needs; ``checkpoint`` is the file that a broken step resumes from.

    ``stop`` is asked after every iteration; once it says True, the step is saved and left.
    """

    method: Method
    context: StepContext
    loader: TrainLoader
    phase: OptimRecipe
    device: torch.device
    seed: int
    checkpoint: Path
    view: ProgressView
    images: int
    stop: Callable[[], bool] | None = None

    @property
    def iterations(self) -> int:
        """The step's number of optimisation steps."""
        if self.phase.iterations is not None:
            return self.phase.iterations
        return max(1, math.ceil((self.phase.epochs or 0) * len(self.loader)))


class StoppedError(RunError):
    """A training that was asked to stop, and has saved how far it was."""


class StepTraining:
    """One step from its first iteration, or from its last checkpoint, to its last."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.stepper = Stepper(job.context.model, job.phase, job.iterations, job.device)
        self.log = TrainingLog()
        self.iteration = 0
        self._pending: list[dict[str, Tensor]] = []
        self._log_every = max(1, min(10, job.iterations // 25))
        self._next_checkpoint = 0.0

    def run(self) -> TrainingLog:
        """Train and return the log; Ctrl-C or death leaves the last checkpoint behind.

        Raises StoppedError once ``job.stop`` says so, after a checkpoint; RunError for losses that are no numbers.
        """
        job = self.job
        seed_everything(job.seed)
        if job.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(job.device)
        self._started = time.perf_counter()
        if not self._resume():
            with autocast(job.device, job.phase.precision):
                job.method.before_training(job.context, self._on_device(job.loader.epoch(0)))
            seed_everything(job.seed)
        self._announce()
        job.context.model.train()
        self._mark = time.perf_counter()
        self._next_checkpoint = self._mark + CHECKPOINT_SECONDS
        for batch in self._batches():
            self._one_iteration(batch)
            if self.iteration % self._log_every == 0 or self.iteration == job.iterations:
                self._flush(batch)
            if job.stop is not None and self.iteration < job.iterations and job.stop():
                self._leave(batch)
        job.method.after_training(job.context)
        self.log.skipped = self.stepper.skipped
        self._note_peaks()
        return self.log

    def _leave(self, batch: Batch) -> NoReturn:
        if self._pending:
            self._flush(batch)
        self._save()
        where = f"iteration {self.iteration} of {self.job.iterations} of step {self.job.context.step}"
        raise StoppedError(f"stopped as asked, at {where}.", hint="The same command goes on from there.")

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
        while self.iteration < self.job.iterations:
            epoch, start = divmod(self.iteration, len(self.job.loader))
            for batch in self._on_device(self.job.loader.epoch(epoch, start)):
                yield batch
                if self.iteration == self.job.iterations:
                    return

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch.to(self.job.device)

    def _one_iteration(self, batch: Batch) -> None:
        job, context = self.job, self.job.context
        previous = None
        with autocast(job.device, job.phase.precision):
            if context.previous is not None:
                with torch.no_grad():
                    previous = context.previous(batch.images)
            output = context.model(batch.images)
        terms = job.method.losses(batch, output, previous, context)
        if not terms:
            raise MethodError(f"the method {job.method.name} returned no loss term at step {context.step}.")
        self.stepper.step(torch.stack(list(terms.values())).sum(), self.iteration)
        self._pending.append({name: term.detach() for name, term in terms.items()})
        self.iteration += 1
        self.log.images += len(batch.ids)

    def _flush(self, batch: Batch) -> None:
        """Bring the pending losses to the host: the only place where the loop waits for the device."""
        names = dict.fromkeys(name for terms in self._pending for name in terms)
        window = {
            name: torch.stack([terms[name] for terms in self._pending if name in terms]).tolist() for name in names
        }
        self._pending.clear()
        now = time.perf_counter()
        self.log.seconds += now - self._mark
        self._mark = now
        means = {name: self._mean(name, values, batch) for name, values in window.items()}
        self.log.iterations.append(self.iteration)
        for name, value in means.items():
            self.log.terms.setdefault(name, []).append(value)
        self.job.view.update(self.iteration, means, self.log.images / max(self.log.seconds, 1e-9))
        if now >= self._next_checkpoint and self.iteration < self.job.iterations:
            self._save()

    def _mean(self, name: str, values: list[float], batch: Batch) -> float:
        """Average the finite values; fp16 may overflow now and then, any other non-finite loss ends the step."""
        finite = [value for value in values if math.isfinite(value)]
        if not finite or (len(finite) < len(values) and self.job.phase.precision != "fp16"):
            raise RunError(
                f"the loss {name} is not a finite number near iteration {self.iteration} of step "
                f"{self.job.context.step} (last images: {', '.join(batch.ids[:4])}).",
                hint="Lower the learning rate (--set optim.lr=...) or clip gradients (--set optim.clip=1).",
            )
        return sum(finite) / len(finite)

    def _save(self) -> None:
        started = time.perf_counter()
        job = self.job
        self._note_peaks()
        state = {
            "iteration": self.iteration,
            "model": job.context.model.state_dict(),
            "stepper": self.stepper.state_dict(),
            "method": job.method.state_dict(),
            "random": random_states(job.device),
            "log": asdict(self.log) | {"wall_before": self.log.wall_before + started - self._started},
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(job.checkpoint, buffer.getvalue())
        self._mark = time.perf_counter()
        cost = self._mark - started
        self._next_checkpoint = self._mark + max(CHECKPOINT_SECONDS, cost / CHECKPOINT_SHARE)

    def _resume(self) -> bool:
        """Take back the checkpoint, if there is a sound one; a damaged one is named and leaves nothing behind."""
        job = self.job
        if not job.checkpoint.exists():
            return False
        fresh = {name: tensor.clone() for name, tensor in job.context.model.state_dict().items()}
        try:
            self._restore(torch.load(job.checkpoint, map_location="cpu", weights_only=True))
        except CHECKPOINT_ERRORS as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            job.view.note(f"the checkpoint {job.checkpoint} is damaged ({reason}); the step starts anew")
            job.context.model.load_state_dict(fresh)
            self.stepper = Stepper(job.context.model, job.phase, job.iterations, job.device)
            self.log, self.iteration = TrainingLog(), 0
            return False
        job.view.note(f"step {job.context.step}: resumed at iteration {self.iteration} of {job.iterations}")
        return True

    def _restore(self, state: dict[str, Any]) -> None:
        job, log = self.job, state["log"]
        job.context.model.load_state_dict(state["model"])
        self.stepper.load_state_dict(state["stepper"])
        job.method.load_state_dict({name: tensor.to(job.device) for name, tensor in state["method"].items()})
        self.log = TrainingLog(**{**log, "resumed": True})
        self.iteration = int(state["iteration"])
        restore_random_states(state["random"], job.device)
