"""Audit a step store: read all that it holds, compare every checksum, and say what to do about what is wrong.

Nothing is changed: a run that needs a damaged step sets it aside and trains it anew by itself.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cispbench.harness.machine.damaged import ASIDE
from cispbench.harness.machine.locks import HOLDER, LOCK, is_held
from cispbench.harness.runs.exemplars import read_chosen
from cispbench.harness.runs.ground_truth import GroundTruth
from cispbench.harness.runs.step_files import WITHOUT_CHECKSUM, read_evaluation
from cispbench.harness.runs.step_store import CHECKPOINT, EXEMPLARS, MANIFEST, METHOD, WEIGHTS, StepStore
from cispbench.harness.training.checkpoint_file import DamagedCheckpointError, verified_payload
from cispbench.results.atomic import explain_os_error
from cispbench.results.audit import Finding
from cispbench.results.record_files import list_folder
from cispbench.splits.errors import StoreError

RETRAIN = "Run again what needs it: the step is set aside and trained anew. An imported step is imported again."
RECOUNT = "Run again what needs it: it is set aside, and the test images are counted anew."
RESTART = "Run its step again: it is set aside, and the step starts anew."
CHOOSE = "Run its step again: it is set aside, exemplars are chosen anew, and the step starts anew."
LEFT = "The next run of the step removes it; you may delete it, too."
LOOK = "Look at it, check the disk, and delete it."
UNKNOWN = "No run reads it. Move it away if it is not wanted."


@dataclass(frozen=True)
class StepsAudit:
    """The findings, ordered by place, and the numbers of what was read.

    ``counts``: sound ``steps`` and ``evaluations``, ``checkpoints`` of unfinished steps, ``bytes`` of weights and of
    what methods keep, ``manifests without checksum`` (of an earlier version), and steps that are ``at work``.
    """

    findings: tuple[Finding, ...]
    counts: Counter[str]

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged."""
        return not any(finding.damaged for finding in self.findings)


def audit_steps(store: StepStore, threads: int | None = None) -> StepsAudit:
    """Audit every step of a store; ``threads`` of them are read at a time (None: one for each core).

    Raises StoreError if the disk fails.
    """
    counts: Counter[str] = Counter()
    findings: list[Finding] = []
    truths: dict[str, GroundTruth] = defaultdict(GroundTruth)
    try:
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:  # hashing lets other threads work
            parts = [
                *pool.map(lambda folder: _StepAudit(store, folder), _content(store.root / "steps")),
                *pool.map(lambda folder: _WorkAudit(store, folder), _content(store.root / "work")),
            ]
    except OSError as error:
        raise StoreError(f"cannot read {store.root}: {error}.", hint="Check the disk and its permissions.") from error
    for part in parts:
        counts.update(part.counts)
        findings += part.findings
        for path, evaluation in part.evaluations.items():
            try:
                truths[evaluation["key"]].require(path, evaluation["confusion"])
            except StoreError as error:
                findings.append(Finding(path, error.message, error.hint or RECOUNT))
    return StepsAudit(tuple(sorted(findings, key=lambda finding: finding.path)), counts)


class _Part(ABC):
    """What one folder of the store holds."""

    def __init__(self, store: StepStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.counts: Counter[str] = Counter()
        self.evaluations: dict[Path, dict[str, Any]] = {}
        self.findings: list[Finding] = []
        try:
            for finding in self._find():
                self.findings.append(finding)
        except StoreError as error:  # a disk that fails; the other folders are audited all the same
            self.findings.append(Finding(folder, error.message, error.hint or LOOK))

    @abstractmethod
    def _find(self) -> Iterator[Finding]:
        """Yield what is wrong or left over in the folder, and count what is sound."""

    def _strangers(self, *known: str) -> Iterator[Finding]:
        """Yield what is in the folder besides ``known``."""
        for path in _content(self.folder):
            if ASIDE in path.name:
                yield _left(path, "a run has set it aside as damaged", LOOK)
            elif path.name.startswith(".") and path.name.endswith(".tmp"):
                yield _left(path, "a killed process has left it", LEFT)
            elif path.name not in known:
                yield _left(path, "it is none of a step's files", UNKNOWN)


class _StepAudit(_Part):
    """A folder of ``steps/``."""

    def _find(self) -> Iterator[Finding]:
        folder, store, key = self.folder, self.store, self.folder.name
        if ASIDE in key:
            yield _left(folder, "a run has set it aside as damaged", LOOK)
        elif key.startswith("."):
            yield _left(folder, "a killed process has left this draft of a step", LEFT)
        elif not folder.is_dir():
            yield _left(folder, "it is no step", UNKNOWN)
        else:
            try:
                damage: StoreError | None = store.damage(key)
            except StoreError as error:  # a disk that fails, or a manifest of a later version
                damage = error
            if damage is not None:
                yield Finding(folder, damage.message, damage.hint or RETRAIN)
            else:
                self.counts["steps"] += 1
                self.counts["bytes"] += sum((folder / name).stat().st_size for name in (WEIGHTS, METHOD))
                self.counts["manifests without checksum"] += store.manifest(key)["schema"] == WITHOUT_CHECKSUM
            evaluations = [path for path in _content(folder) if path.match("evaluation-*.json")]
            yield from self._evaluations(evaluations)
            yield from self._strangers(WEIGHTS, METHOD, MANIFEST, *(path.name for path in evaluations))

    def _evaluations(self, paths: list[Path]) -> Iterator[Finding]:
        for path in paths:
            try:
                self.evaluations[path] = read_evaluation(path)
                self.counts["evaluations"] += 1
            except (OSError, ValueError) as error:
                yield Finding(path, f"{path} is damaged: {error}.", RECOUNT)


class _WorkAudit(_Part):
    """A folder of ``work/``."""

    def _find(self) -> Iterator[Finding]:
        if not self.folder.is_dir():
            yield _left(self.folder, "it is no folder of a step in training", UNKNOWN)
            return
        if is_held(self.folder):
            self.counts["at work"] += 1  # what lies there may change at any moment
            return
        for name, look in ((CHECKPOINT, self._checkpoint), (EXEMPLARS, self._exemplars)):
            path = self.folder / name
            if os.path.lexists(path):
                if self.store.has(self.folder.name):
                    yield _left(path, "its step is finished", LEFT)
                else:
                    yield from look(path)
        yield from self._strangers(CHECKPOINT, EXEMPLARS, LOCK, HOLDER)

    def _checkpoint(self, path: Path) -> Iterator[Finding]:
        try:
            verified_payload(path)
            self.counts["checkpoints"] += 1
        except DamagedCheckpointError as error:
            yield Finding(path, f"{path} is damaged: {error}.", RESTART)

    def _exemplars(self, path: Path) -> Iterator[Finding]:
        try:
            read_chosen(path, self.folder.name)
        except OSError as error:
            raise explain_os_error("read", path, error) from error
        except Exception as error:  # noqa: BLE001 (a checksum, a type, a field: damage of any kind)
            yield Finding(path, f"{path} is damaged: {error}.", CHOOSE)


def _content(folder: Path) -> list[Path]:
    """Return all that lies in a folder, in order. Raises StoreError as ``list_folder`` does."""
    return sorted(path for kind in list_folder(folder) for path in kind)


def _left(path: Path, what: str, action: str) -> Finding:
    return Finding(path, f"{path}: {what}.", action, damaged=False)
