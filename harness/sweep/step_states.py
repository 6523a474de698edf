"""The state of each step of a sweep, looked up in the two stores; why a step is stale, and what it is going to cost."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from cispbench.harness.machine.environment import describe_environment
from cispbench.harness.runs.key_parts import changed_parts, parts_from_record
from cispbench.harness.runs.published import PUBLISHED
from cispbench.harness.runs.step_store import METHOD, WEIGHTS, DamagedStepError, StepStore
from cispbench.harness.sweep.graph import Need, State, StepState
from cispbench.harness.training.other_code import is_other_code
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import Execution
from cispbench.results.store import Store, foreign

# A record does not hold these parts of a key, and the manifest that does is gone.
NOT_RECORDED = (
    "its key is another one, though nothing that the record holds has changed: the training code or the models have "
    "another version, or --no-share was given or left out"
)
_SameStep = tuple[str, str, int, str, str, int]  # method, setting, seed, profile, model, step
_SamePace = tuple[Any, ...]


class StepStates:
    """The states of steps, from the stores as they are when this is made.

    ``device``, ``micro_batch`` and ``devices``: those of the trainings to come.
    """

    def __init__(
        self, records: Store, steps: StepStore, device: str, micro_batch: int | None, devices: int = 1
    ) -> None:
        self._steps = steps
        self._execution = Execution(devices, micro_batch)
        self._records = records
        self._recorded: set[tuple[str, str]] = set()
        self._trained: dict[str, StepRecord] = {}
        self._foreign: dict[tuple[str, str], StepRecord] = {}
        self._older: dict[_SameStep, list[StepRecord]] = defaultdict(list)
        self._seconds: dict[_SamePace, list[float]] = defaultdict(list)  # of one iteration
        self._bytes: dict[str, int] = {}
        here = describe_environment(device)
        self._hardware = here["device_name"] or here["cpu"]
        for record in records.records():
            self._read(record)

    def _read(self, record: StepRecord) -> None:
        # A submitted record was measured elsewhere: the step is not done here, and its seconds say nothing.
        if record.origin != "measured":
            self._foreign[record.key, record.run_key] = record
            return
        self._recorded.add((record.key, record.run_key))
        self._trained[record.key] = record
        same = (record.method.name, record.setting, record.seed, record.profile, record.model.name, record.step)
        self._older[same].append(record)
        hardware = record.environment.get("device_name") or record.environment.get("cpu")
        comparable = hardware == self._hardware and record.execution == self._execution and not record.timing.resumed
        if comparable and record.iterations:
            pace = _same_pace(record.model.name, record.method.name, record.step, record.recipe)
            self._seconds[pace].append(record.timing.train_seconds / record.iterations)
        weights = self._steps.folder(record.key) / WEIGHTS
        if weights.is_file():
            self._bytes[record.model.name] = max(self._bytes.get(record.model.name, 0), weights.stat().st_size)

    def find(self, key: str, needs: Sequence[Need], iterations: int) -> StepState:
        """Return the state of a step. Raises StoreError if a submitted record is stored where its own belongs."""
        for need in needs:
            if record := self._foreign.get((key, need.run.run_key)):
                raise foreign(record, self._records.place(record))
        state, reason = self._state(key, needs)
        run, planned = needs[0].run, needs[0].planned
        measured = None
        if self._seconds:  # a recipe is costly to turn into a mapping, and most plans have nothing to compare with
            pace = _same_pace(run.recipe.model, run.method.name, planned.step, run.recipe.as_dict())
            measured = self._seconds.get(pace)
        seconds = iterations * statistics.median(measured) if measured else None
        return StepState(state, reason, seconds, self._bytes.get(run.recipe.model))

    def _state(self, key: str, needs: Sequence[Need]) -> tuple[State, str]:
        if needs[0].run.data.fingerprint.startswith(PUBLISHED):
            return "unknown", "no data is at hand"
        recorded = all((key, need.run.run_key) in self._recorded for need in needs)
        other_code = next((text for need in needs if (text := self._other_code(need))), "")
        if not self._steps.folder(key).exists():
            if recorded:
                return "recorded", other_code
            reason = next((text for need in needs if (text := self._why_stale(need))), "")
            return ("stale", reason) if reason else ("missing", "")
        damage = self._damage(key)
        if damage:
            return "damaged", damage
        return ("done" if recorded else "trained"), other_code

    def _other_code(self, need: Need) -> str:
        """Say that a finished step was trained by other code of the run's method than today's; "" if it was not."""
        run, planned = need.run, need.planned
        record = self._trained.get(planned.key)
        if record is None or record.trained_for is None:
            return ""
        now, by = (run.method.name, run.method.code), (record.trained_for.method, record.method.code)
        return f"trained by other code of {run.method.name}" if is_other_code(now, by) else ""

    def _damage(self, key: str) -> str:
        """Return what is wrong with a step's files, "" if nothing is; only a loading compares checksums."""
        try:
            self._steps.manifest(key)
        except DamagedStepError as error:
            return str(error)
        lacking = [name for name in (WEIGHTS, METHOD) if not (self._steps.folder(key) / name).is_file()]
        return f"{', '.join(lacking)} of {self._steps.folder(key)} is missing" if lacking else ""

    def _made_of(self, record: StepRecord, shared_base: bool) -> Mapping[str, Any]:
        """Return the parts of an older step's key: from its manifest, else what its record tells of them."""
        try:
            kept = self._steps.manifest(record.key).get("made_of")
        except DamagedStepError:
            kept = None
        return kept if isinstance(kept, dict) and kept else parts_from_record(record, shared_base)

    def _why_stale(self, need: Need) -> str:
        """Return what changed since the newest record of the same step, or of one before it; "" if there is none.

        A run with another model, profile or seed is another run, not a newer one: its steps are missing, not stale.
        """
        run = need.run
        for planned in run.steps[: need.planned.step - run.steps[0].step + 1]:
            if not planned.made_of:
                continue  # an imported step: its key is that of its file
            same = (run.method.name, run.setting.name, run.seed, run.profile, run.recipe.model, planned.step)
            if any(record.key == planned.key for record in self._older.get(same, [])):
                continue  # this step has not changed; its older records are those of other recipes
            if older := self._older.get(same):
                newest = max(older, key=lambda record: record.created)
                before = self._made_of(newest, run.method.shared_base)
                return ", ".join(changed_parts(before, planned.made_of, planned.step)) or NOT_RECORDED
        return ""


def _same_pace(model: str, method: str, step: int, recipe: dict[str, Any]) -> _SamePace:
    """Return what trainings have in common if their iterations take the same time.

    The method is left out for step 0, where hardly a method adds anything to the cross-entropy.
    """
    phase = recipe["optim"] | (recipe["later"] if step else {})
    return model, method if step else None, step > 0, recipe["data"]["crop"], phase["batch"], phase["precision"]
