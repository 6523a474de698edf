"""A run: the steps of a setting in order, each trained once, tested, and recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cispbench.harness.machine.damaged import set_aside
from cispbench.harness.machine.locks import run_lock
from cispbench.harness.runs.exemplars import memory_part
from cispbench.harness.runs.ground_truth import GroundTruth
from cispbench.harness.runs.options import RunOptions
from cispbench.harness.runs.other_code import code_warning
from cispbench.harness.runs.plan import PlannedStep, RunPlan
from cispbench.harness.runs.recording import step_manifest, step_record, trained_here
from cispbench.harness.runs.step_files import WITHOUT_CHECKSUM
from cispbench.harness.runs.step_store import CHECKPOINT, DamagedEvaluationError
from cispbench.harness.runs.step_work import StepWork
from cispbench.harness.training.other_code import TrainedBy
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import Execution
from cispbench.splits.errors import StoreError

TRAIN, TEST, END = "train", "test", "end"  # what the first process of a group tells the others to do


@dataclass(frozen=True)
class RunResult:
    """The records of all steps; ``trained`` counts the steps trained now."""

    records: list[StepRecord]
    trained: int
    finished_before: bool = False


def execute(plan: RunPlan, options: RunOptions) -> RunResult:
    """Train and test what is missing of a run, in order; what is there is left as it is.

    Of several processes the first one returns the result, and the others none of it. Raises RunError, StoreError,
    DataError or MethodError; whatever is finished by then stays.
    """
    run = _Run(plan, options)
    if not options.group.first:
        run.follow()
        return RunResult([], trained=0)
    result = _lead(run)
    options.group.decide((END, 0))
    return result


def _lead(run: _Run) -> RunResult:
    plan, options = run.plan, run.options
    wanted = [planned for planned in plan.steps if options.until is None or planned.step <= options.until]
    found = [options.records.find(planned.key, plan.run_key) for planned in wanted]
    # Said before anything is trained: the new steps would build on the stored ones.
    warning = code_warning(plan.method, dict(map(run.trained_by, wanted, found)))
    if warning:
        options.view.warn(warning)
    if all(found):
        return RunResult([record for record in found if record is not None], trained=0, finished_before=True)
    method = run.work.method  # made first: changed code is refused before anything is written
    options.records.prepare()
    truth = GroundTruth()
    for known in filter(None, found):
        truth.require(options.records.place(known), known.confusion)
    run.require_same(truth)
    records = []
    for planned, record in zip(wanted, found, strict=True):
        if record is None:
            run.provide(planned.step)
            tested, made = run.evaluation(planned), run.manifest(planned.key)
            truth.require(options.steps.evaluation_file(planned.key, plan.evaluation_key), tested["confusion"])
            record = step_record(plan, planned, type(method), tested, made)
            options.records.write(record)
        records.append(record)
        if options.on_step is not None:
            options.on_step(record)
    return RunResult(records, run.trained)


class _Run:
    """What is missing of one run, step by step."""

    def __init__(self, plan: RunPlan, options: RunOptions) -> None:
        self.plan, self.options, self.store = plan, options, options.steps
        self.work = StepWork(plan, options)
        self.trained = 0

    def provide(self, step: int) -> None:
        """See to it that the step is in the step store, training it (and what it builds on) if it is not."""
        planned = self.plan.planned(step)
        if self._is_intact(planned.key):
            return
        if not planned.made_of:  # imported: training it would put other weights under the key of its file
            raise StoreError(
                f"the imported step {planned.key[:10]} is missing or damaged in {self.store.root}.",
                hint="Import its checkpoint again.",
            )
        if step > 0:
            self.provide(step - 1)
        with self._lock(planned) as folder:
            # Looked at again: another process may have trained it while this one waited for the lock.
            if self._is_intact(planned.key):
                return
            self._set_damaged_aside(planned.key)
            started = time.perf_counter()
            self.options.group.decide((TRAIN, step))
            model, log, iterations = self.work.train(planned, folder / CHECKPOINT)
            seconds = log.wall_before + time.perf_counter() - started
            execution = Execution(
                self.options.group.size, self.plan.micro_batch, log.compiled, log.tf32, log.cudnn_benchmark
            )
            made = step_manifest(model, log, str(self.options.device), iterations=iterations, seconds=seconds)
            memory = memory_part(self.work.exemplars, self.work.source)
            manifest = {**made, **memory, **trained_here(self.plan, planned, execution)}
            self.store.publish(planned.key, model.state_dict(), self.work.state_after(step), manifest)
            self._clean_up(planned.key)
        self.trained += 1

    def trained_by(self, planned: PlannedStep, record: StepRecord | None) -> tuple[int, TrainedBy]:
        """Return the index of a step with what trained it, from its record or else its manifest.

        No method trains a base that methods share.
        """
        if not self.plan.method.trains(planned.step):
            return planned.step, (None, None)
        if record is not None:
            return planned.step, (record.trained_for.method if record.trained_for else None, record.method.code)
        try:
            made = self.store.manifest(planned.key) if self.store.has(planned.key) else {}
        except StoreError:  # ``provide`` comes to it: a damaged step is trained again, a disk that fails is an error
            made = {}
        return planned.step, (made.get("trained_for", {}).get("method"), made.get("method_code"))

    def follow(self) -> None:
        """Do what the first process says, until it says that this is the end."""
        while True:
            what, step = self.options.group.decide((END, 0))
            if what == END:
                return
            planned = self.plan.planned(step)
            if what == TRAIN:
                self.work.train(planned, self.store.root / "work" / planned.key / CHECKPOINT)
            else:
                self.work.count(planned)

    @contextmanager
    def _lock(self, planned: PlannedStep) -> Iterator[Path]:
        """Lock a step against other processes and remove what killed ones left; yields its working folder."""
        plan, folder = self.plan, self.store.work(planned.key)
        what = f"step {planned.step} of {plan.method.name} on {plan.setting.name}, seed {plan.seed}"
        with run_lock(folder, what, self.options.wait, on_wait=self.options.view.waiting):
            self._clean_up(planned.key)
            yield folder

    def _clean_up(self, key: str) -> None:
        for trouble in self.store.clean_up(key):
            self.options.view.warn(trouble)

    def _is_intact(self, key: str) -> bool:
        """Whether the step is in the step store and its files have the checksums of its manifest."""
        return self.store.has(key) and self.store.damage(key) is None

    def _set_damaged_aside(self, key: str) -> None:
        """Move a damaged step out of the way; only for who holds its lock."""
        damage = self.store.damage(key) if self.store.folder(key).exists() else None
        if damage is not None:
            aside = self.store.set_aside(key)
            self.options.view.warn(f"{damage} It is kept as {aside.name} and the step is trained anew.")

    def manifest(self, key: str) -> dict[str, Any]:
        """Return the manifest of a step, and say so if nothing tells whether it is what was written."""
        made = self.store.manifest(key)
        if made["schema"] == WITHOUT_CHECKSUM:
            self.options.view.note(
                f"the manifest of {key[:10]} has no checksum (an earlier version wrote it); it is used"
            )
        return made

    def require_same(self, truth: GroundTruth) -> None:
        """Raise StoreError unless all stored evaluations of the run, as far as they are sound, have the same truth."""
        for planned in self.plan.steps:
            with suppress(DamagedEvaluationError):
                known = self.store.evaluation(planned.key, self.plan.evaluation_key)
                if known is not None:
                    path = self.store.evaluation_file(planned.key, self.plan.evaluation_key)
                    truth.require(path, known["confusion"])

    def evaluation(self, planned: PlannedStep) -> dict[str, Any]:
        """Return the step's confusion matrix and the seconds it took, from the store where it is known."""
        with suppress(DamagedEvaluationError):
            known = self.store.evaluation(planned.key, self.plan.evaluation_key)
            if known is not None:
                return known
        with self._lock(planned):
            try:
                known = self.store.evaluation(planned.key, self.plan.evaluation_key)
            except DamagedEvaluationError as damage:
                aside = set_aside(self.store.evaluation_file(planned.key, self.plan.evaluation_key))
                self.options.view.warn(f"{damage} It is kept as {aside.name} and the test images are counted anew.")
                known = None
            return known or self._evaluate(planned)

    def _evaluate(self, planned: PlannedStep) -> dict[str, Any]:
        started = time.perf_counter()
        self.options.group.decide((TEST, planned.step))
        matrix, images = self.work.count(planned)
        content = {"confusion": matrix.tolist(), "seconds": time.perf_counter() - started, "images": images}
        self.store.write_evaluation(planned.key, self.plan.evaluation_key, content)
        return content
