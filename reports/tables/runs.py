"""What a finished run of a store is, how runs are selected, and which runs may be compared with which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from cispbench.reports.tables.numbers import json_number
from cispbench.results.continual import METRICS, Continual
from cispbench.results.record import StepRecord
from cispbench.results.record_fields import StepFacts
from cispbench.results.scan import Cost
from cispbench.results.scores import Scores, score
from cispbench.results.store import Store
from cispbench.splits.settings import list_settings, parse_setting

SCORES = ("old", "new", "all")
NUMBERS = (*SCORES, "pixel_accuracy", *METRICS)
_DATA = {"mini": "a small part of the real data", "synthetic": "synthetic scenes"}


class Group(NamedTuple):
    """Runs that may stand in one table: the same kind of data, profile and data set."""

    kind: str
    profile: str
    dataset: str

    @property
    def comparable(self) -> bool:
        """Whether its numbers may stand beside published ones."""
        return self.kind == "full" and self.profile == "paper"

    @property
    def warnings(self) -> list[str]:
        """What must stand below its numbers; empty where they are comparable with published ones."""
        if self.comparable:
            return []
        measured = f"on {_DATA[self.kind]}" if self.kind in _DATA else f"under the profile {self.profile}"
        return [f"Measured {measured}: these numbers are NOT comparable with published ones."]


class ScoredStep(NamedTuple):
    """A recorded step of a run: its number and content key, the scores after it, its cost, and on how many devices."""

    step: int
    key: str
    scores: Scores
    cost: Cost
    devices: int


@dataclass(frozen=True)
class Run:
    """A finished run, scored under one protocol.

    ``facts``: what the record of its last step, at ``path``, says; ``scores``: after the last step, in percent;
    ``steps``: the recorded steps in order (a run that continues an imported step may lack the earlier ones);
    ``continual``: NaN where a step is missing, and ``intransigence`` NaN without a joint run to compare with;
    ``imported``: one of its steps was trained by other code.
    """

    facts: StepFacts
    path: Path
    protocol: str
    scores: Scores
    steps: tuple[ScoredStep, ...]
    continual: Continual
    imported: bool

    @property
    def complete(self) -> bool:
        """Whether every step of the run has its record."""
        return len(self.steps) == self.facts.steps

    @property
    def devices(self) -> tuple[int, ...]:
        """On how many devices its steps were trained: each number once, the smallest first."""
        return tuple(sorted({step.devices for step in self.steps}))

    @property
    def group(self) -> Group:
        """The group that the run belongs to."""
        return group_of(self.facts)

    @property
    def age(self) -> tuple[datetime, str]:
        """By what runs are sorted from the oldest to the newest; the run key decides between equal times."""
        return datetime.fromisoformat(self.facts.created), self.facts.run_key

    def number(self, name: str) -> float:
        """Return one of ``NUMBERS`` in percent; NaN where unknown or undefined."""
        return float(getattr(self.continual if name in METRICS else self.scores, name))


@dataclass(frozen=True)
class Selection:
    """Which runs: ``method`` and ``setting`` may hold ``*``, ``?`` and ``[...]``, ``run`` is how a run key starts."""

    method: str | None = None
    setting: str | None = None
    run: str | None = None

    def __post_init__(self) -> None:
        if self.setting is not None:
            object.__setattr__(self, "setting", setting_pattern(self.setting))


def nothing_finished(store: Store) -> str:
    """Return what a report says of a store without a finished run, and what to do next."""
    return (
        f"No finished runs in {store.path}. `cispbench run` makes one, --results names another folder, and `cispbench "
        "table --paper METHOD` shows the published numbers of a method."
    )


def setting_pattern(text: str) -> str:
    """Return the canonical name of a setting; a pattern stays as it is. Raises SettingError."""
    return text if set(text) & set("*?[") else parse_setting(text).name


def setting_order(names: Iterable[str]) -> dict[str, int]:
    """Return, by name, the position of settings: in the order of ``list_settings``, others by name after them."""
    names = set(names)
    homes = {parse_setting(name).dataset for name in names}
    listed = [setting.name for setting in list_settings(homes)]
    ordered = sorted(names, key=lambda name: (listed.index(name) if name in listed else len(listed), name))
    return {name: position for position, name in enumerate(ordered)}


def score_record(record: StepRecord, protocol: str) -> Scores:
    """Score a record. The only step of a joint run counts as the last step of its setting."""
    return score(record.confusion, parse_setting(record.setting), None if record.joint else record.step, protocol)


def group_of(record: StepFacts) -> Group:
    """Return the group that a record's run belongs to."""
    return Group(record.data.kind, record.profile, record.dataset)


def run_json(record: StepFacts) -> dict[str, Any]:
    """Return what identifies a run, as JSON holds it, and whether its numbers may stand beside published ones."""
    return {
        "dataset": record.dataset, "setting": record.setting, "method": record.method.title,
        "model": record.model.name, "profile": record.profile, "data": record.data.kind, "seed": record.seed,
        "comparable": group_of(record).comparable, "run_key": record.run_key,
    }  # fmt: skip


def scores_json(scores: Scores) -> dict[str, float | None]:
    """Return the main scores as JSON holds them, null where undefined."""
    return {name: json_number(float(getattr(scores, name))) for name in (*SCORES, "harmonic", "pixel_accuracy")}
