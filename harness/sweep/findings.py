"""What the two stores hold of a sweep's steps: their state, why one is stale, and what such steps have cost so far."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cispbench.harness.machine.environment import describe_environment
from cispbench.harness.recipes.fields import Recipe
from cispbench.harness.recipes.layers import flat
from cispbench.harness.runs.published import PUBLISHED
from cispbench.harness.runs.step_store import METHOD, WEIGHTS, DamagedStepError, StepStore
from cispbench.harness.sweep.graph import Finding, Need, State
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import Execution
from cispbench.results.store import Store, foreign

UNTOLD = ("evaluation.", "model", "weights", "method.")  # parts of a recipe that do not train, or that are told apart
_Place = tuple[str, str, int, str, str, int]
_Kind = tuple[Any, ...]


class Findings:
    """The stores as they were when this was made; ``micro_batch``: that of the trainings to come."""

    def __init__(self, records: Store, steps: StepStore, device: str, micro_batch: int | None) -> None:
        self._steps = steps
        self._execution = Execution(1, micro_batch)
        self._records = records
        self._recorded: set[tuple[str, str]] = set()
        self._foreign: dict[tuple[str, str], StepRecord] = {}
        self._by_place: dict[_Place, list[StepRecord]] = defaultdict(list)
        self._pace: dict[_Kind, list[float]] = defaultdict(list)
        self._sizes: dict[str, int] = {}
        here = describe_environment(device)
        self._machine = here["device_name"] or here["cpu"]
        for record in records.records():
            self._take(record)

    def _take(self, record: StepRecord) -> None:
        if record.origin != "measured":  # whoever submitted it: it tells nothing of this machine, nor what is done
            self._foreign[record.key, record.run_key] = record
            return
        self._recorded.add((record.key, record.run_key))
        place = (record.method.name, record.setting, record.seed, record.profile, record.model.name, record.step)
        self._by_place[place].append(record)
        machine = record.environment.get("device_name") or record.environment.get("cpu")
        like = machine == self._machine and record.execution == self._execution
        if like and record.iterations and not record.timing.resumed:
            kind = _kind(record.model.name, record.method.name, record.step, record.recipe)
            self._pace[kind].append(record.timing.train_seconds / record.iterations)
        weights = self._steps.folder(record.key) / WEIGHTS
        if weights.is_file():
            self._sizes[record.model.name] = max(self._sizes.get(record.model.name, 0), weights.stat().st_size)

    def find(self, key: str, needs: Sequence[Need], iterations: int) -> Finding:
        """Return what is known of a step. Raises StoreError if a submitted record stands in place of one of its own."""
        for need in needs:
            if record := self._foreign.get((key, need.run.run_key)):
                raise foreign(record, self._records.place(record))
        state, reason = self._state(key, needs)
        run, planned = needs[0].run, needs[0].planned
        kind = _kind(run.recipe.model, run.method.name, planned.step, _plain(run.recipe)) if self._pace else None
        paces = self._pace.get(kind) if kind else None
        seconds = iterations * statistics.median(paces) if paces else None
        return Finding(state, reason, seconds, self._sizes.get(run.recipe.model))

    def is_recorded(self, need: Need) -> bool:
        """Whether the record that a run needs of a step is there."""
        return (need.planned.key, need.run.run_key) in self._recorded

    def _state(self, key: str, needs: Sequence[Need]) -> tuple[State, str]:
        if needs[0].run.data.fingerprint.startswith(PUBLISHED):
            return "unknown", "no data to tell by"
        recorded = all(self.is_recorded(need) for need in needs)
        if not self._steps.folder(key).exists():
            if recorded:
                return "recorded", ""
            reason = next((text for need in needs if (text := self._stale(need))), "")
            return ("stale", reason) if reason else ("missing", "")
        damage = self._damage(key)
        if damage:
            return "damaged", damage
        return ("done" if recorded else "trained"), ""

    def _damage(self, key: str) -> str:
        """Return what a look at the manifest and the files' presence finds wrong; checksums are for the reading."""
        try:
            self._steps.manifest(key)
        except DamagedStepError as error:
            return str(error)
        lacking = [name for name in (WEIGHTS, METHOD) if not (self._steps.folder(key) / name).is_file()]
        return f"{', '.join(lacking)} of {self._steps.folder(key)} is missing" if lacking else ""

    def _stale(self, need: Need) -> str:
        """Return what has changed, in this step or one before it, since the newest record of the run's like."""
        run = need.run
        for planned in run.steps[: need.planned.step - run.steps[0].step + 1]:
            place = (run.method.name, run.setting.name, run.seed, run.profile, run.recipe.model, planned.step)
            older = [record for record in self._by_place.get(place, []) if record.key != planned.key]
            if older:
                changes = _changes(max(older, key=lambda record: record.created), Need(run, planned))
                if changes:
                    return ", ".join(changes)
        return ""


def _kind(model: str, method: str, step: int, recipe: dict[str, Any]) -> _Kind:
    """Return what trainings must have in common for one's pace to tell the other's; a base is plain for any method."""
    phase = recipe["optim"] | (recipe["later"] if step else {})
    return model, method if step else None, step > 0, recipe["data"]["crop"], phase["batch"], phase["precision"]


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {"optim": asdict(recipe.optim), "later": recipe.later, "data": {"crop": recipe.data.crop}}


def _changes(record: StepRecord, need: Need) -> list[str]:
    run, planned = need.run, need.planned
    changes = []
    if record.data.fingerprint != run.data.fingerprint or record.data.list_sha256 != planned.list_sha256:
        changes.append("the data changed")
    if record.model.weights_sha256 != run.weights.sha256:
        changes.append("the pre-trained weights changed")
    if planned.step or not run.method.shared_base:
        if record.method.version != run.method.version:
            changes.append(f"{run.method.name} is version {run.method.version}, was {record.method.version}")
        options = json.loads(json.dumps(dict(run.method.options)))  # as in a record: lists, no tuples
        changes += _differing(record.method.options, options, "method.")
    ignored = UNTOLD if planned.step else (*UNTOLD, "later.")
    before, now = (
        {name: value for name, value in flat(recipe).items() if not name.startswith(ignored)}
        for recipe in (record.recipe, run.recipe.as_dict())
    )
    return changes + _differing(before, now)


def _differing(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        f"{prefix}{name} is {now.get(name, 'not set')}, was {before.get(name, 'not set')}"
        for name in dict.fromkeys([*now, *before])
        if now.get(name) != before.get(name)
    ]
