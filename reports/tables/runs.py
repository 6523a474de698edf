"""Which finished runs of a store a table shows, which of them differ by their seeds alone, and what they compare to."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cispbench.results.record import StepRecord
from cispbench.results.record_fields import StepFacts
from cispbench.results.scores import Scores, score
from cispbench.results.store import Store, read_record
from cispbench.splits.errors import UsageError, nearest
from cispbench.splits.settings import list_settings, parse_setting

AnyRecord = TypeVar("AnyRecord", bound=StepFacts)

_DATA = {"mini": "a small part of the real data", "synthetic": "synthetic scenes"}


class Group(NamedTuple):
    """Runs that may stand in one table: the same kind of data, profile and data set."""

    kind: str
    profile: str
    dataset: str


@dataclass(frozen=True)
class Selection:
    """Which runs: ``method`` and ``setting`` may hold ``*``, ``?`` and ``[...]``, ``run`` is how a run key starts."""

    method: str | None = None
    setting: str | None = None
    run: str | None = None

    def __post_init__(self) -> None:
        if self.setting is not None:
            object.__setattr__(self, "setting", setting_pattern(self.setting))

    def takes(self, method: str, setting: str) -> bool:
        """Say whether runs of a method on a setting are selected, as far as their names decide."""
        asked = ((method, self.method), (setting, self.setting))
        return all(pattern is None or fnmatch.fnmatchcase(name, pattern) for name, pattern in asked)


def setting_pattern(text: str) -> str:
    """Return the canonical name of a setting; a pattern stays as it is. Raises SettingError."""
    return text if set(text) & set("*?[") else parse_setting(text).name


def finished_runs(store: Store, selection: Selection | None = None) -> list[StepRecord]:
    """Return the last record of each finished run that is selected; none if the store holds no finished run.

    Raises UsageError with the nearest name if runs are finished, but none is selected.
    """
    records = map(read_record, store.last_files())
    return selected([record for record in records if record.finished], selection, store.path)


def selected(records: list[AnyRecord], selection: Selection | None, place: Path) -> list[AnyRecord]:
    """Return those of the finished runs of the store at ``place`` that are selected.

    Raises UsageError with the nearest name if there are runs, but none is selected.
    """
    wanted = selection or Selection()
    told: list[str] = []
    for option, pattern in (("method", wanted.method), ("setting", wanted.setting), ("run", wanted.run)):
        if pattern is None or not records:
            continue
        told.append(f"--{option} {pattern}")
        names = {_name(record, option) for record in records}
        whole = f"{pattern}*" if option == "run" else pattern
        records = [record for record in records if fnmatch.fnmatchcase(_name(record, option), whole)]
        if not records:
            known = {name[:10] for name in names} if option == "run" else names
            raise UsageError(f"no finished run in {place} has {' '.join(told)}.", hint=nearest(pattern, known))
    return records


def grouped(records: Iterable[AnyRecord]) -> dict[Group, list[AnyRecord]]:
    """Return the records by group, groups in their order."""
    groups: dict[Group, list[AnyRecord]] = defaultdict(list)
    for record in records:
        groups[Group(record.data.kind, record.profile, record.dataset)].append(record)
    return {group: groups[group] for group in sorted(groups)}


def newest(records: Iterable[AnyRecord]) -> list[AnyRecord]:
    """Keep, of the runs that differ by nothing but their code, the one that was trained last."""
    kept: dict[tuple[str | int, ...], AnyRecord] = {}
    for record in sorted(records, key=_age):
        key: tuple[str | int, ...] = (
            record.data.kind, record.profile, record.dataset, record.setting,
            record.method.name, record.model.name, record.seed, _digest(record),
        )  # fmt: skip
        kept[key] = record
    return list(kept.values())


def variants(records: Iterable[StepFacts]) -> dict[str, str]:
    """Return, by run key, "" for runs of the recipe that came first in their row, else the digest of theirs."""
    first: dict[tuple[str, str, str], str] = {}
    found = {}
    for record in sorted(records, key=_age):
        digest = _digest(record)
        usual = first.setdefault((record.method.name, record.model.name, record.setting), digest)
        found[record.run_key] = "" if digest == usual else digest
    return found


def score_record(record: StepRecord, protocol: str) -> Scores:
    """Score a record; a joint run's only step is the last one, whatever steps its setting has."""
    return score(record.confusion, parse_setting(record.setting), None if record.joint else record.step, protocol)


def sorted_settings(names: Iterable[str]) -> list[str]:
    """Return names of settings in the order in which settings are listed, unlisted ones last."""
    listed = [setting.name for setting in list_settings()]
    return sorted(names, key=lambda name: (listed.index(name) if name in listed else len(listed), name))


def run_json(record: StepFacts) -> dict[str, Any]:
    """Return what identifies a run, as JSON holds it."""
    return {
        "dataset": record.dataset, "setting": record.setting, "method": record.method.name,
        "model": record.model.name, "profile": record.profile, "data": record.data.kind, "seed": record.seed,
        "run_key": record.run_key,
    }  # fmt: skip


def scores_json(scores: Scores) -> dict[str, float | None]:
    """Return the main scores as JSON holds them, null where undefined."""
    numbers = {name: float(getattr(scores, name)) for name in ("old", "new", "all", "harmonic", "pixel_accuracy")}
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}


def comparable(kind: str, profile: str) -> bool:
    """Say whether runs of this kind of data and profile may stand beside published numbers."""
    return kind == "full" and profile == "paper"


def comparison_warning(kind: str, profile: str) -> str:
    """Return what has to stand below numbers that are not comparable."""
    measured = f"Measured on {_DATA[kind]}" if kind in _DATA else f"Measured under the profile {profile}"
    return f"{measured}: these numbers are NOT comparable with published ones."


def _name(record: StepFacts, option: str) -> str:
    return {"method": record.method.name, "setting": record.setting, "run": record.run_key}[option]


def _age(record: StepFacts) -> tuple[datetime, str]:
    return datetime.fromisoformat(record.created), record.run_key


def _digest(record: StepFacts) -> str:
    """Return a short digest of what a person can change about a run besides its seed."""
    parts = [record.recipe, record.method.version, record.method.options, record.model.weights_sha256]
    content = json.dumps([*parts, record.data.fingerprint], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:6]
