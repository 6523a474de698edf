"""Read all of a store and tell everything that is wrong in it, and bring records of older schemas to this one's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cispbench.results.atomic import write_atomic
from cispbench.results.checked_json import has_checksum
from cispbench.results.record import StepRecord
from cispbench.results.record_files import DEPTH, linked, list_folder, named_as_record, read_file, step_number
from cispbench.results.run_rules import scored_from_files
from cispbench.results.store import Store, check_run, read_record
from cispbench.splits.errors import StoreError

_HOME = "Move it out of the store. A record lies at runs/<data set>/<setting>/<method>/<run>/step-<k>.json."
_BEGINNING = 128  # bytes of a file that tell whether it carries a checksum


@dataclass(frozen=True)
class Finding:
    """A file or folder, a sentence that names it and says what was found, and what to do.

    ``damaged``: its content is wrong or cannot be read. All else is left over, and harms nothing.
    """

    path: Path
    what: str
    action: str
    damaged: bool = True


@dataclass(frozen=True)
class RecordsAudit:
    """How many records and runs were read without an error, how many without a checksum, and all that is wrong."""

    records: int
    runs: int
    unchecked: tuple[Path, ...]
    problems: tuple[Finding, ...]


def audit_records(store: Store) -> RecordsAudit:
    """Read every file below the store's folder ``runs`` by all rules for records and runs."""
    problems: list[Finding] = []
    unchecked: list[Path] = []
    runs = records = 0
    # Run by run: all records of a large store do not fit into memory.
    for folder, paths in groupby(_files(store.runs, problems), key=lambda path: path.parent):
        at_home = len(folder.relative_to(store.runs).parts) == DEPTH
        named: list[Path] = []
        others: list[Path] = []
        for path in paths:
            (named if at_home and named_as_record(path) else others).append(path)
        problems += [Finding(path, f"{path} is no record, and nothing reads it.", _HOME) for path in others]
        read = _audit_run(folder, named, problems)
        unchecked += [path for path in read if not has_checksum(read_file(path, _BEGINNING))]
        runs, records = runs + bool(read), records + len(read)
    return RecordsAudit(records, runs, tuple(unchecked), tuple(problems))


def _audit_run(folder: Path, paths: list[Path], problems: list[Finding]) -> list[Path]:
    """Return the files of a run that can be read, and note what is wrong with the others and with the whole."""
    records = {}
    for path in paths:
        try:
            records[path] = read_record(path)
        except StoreError as error:
            problems.append(_problem(path, error))
    try:
        check_run(folder, [(record, record.matrix()) for record in records.values()])
    except StoreError as error:
        problems.append(_problem(folder, error))
    # A record that cannot be read is not missing.
    if len(records) == len(paths) and (missing := _missing(list(records.values()))):
        what = f"{folder} has no record of step {', '.join(map(str, missing))}, though of later ones."
        problems.append(Finding(folder, what, "Restore it from version control, or rerun."))
    return list(records)


def rewrite_records(found: RecordsAudit) -> None:
    """Write the records of an audit that carry no checksum anew, with one; nothing else in them changes.

    To be called where the audit has found no problem, which a checksum would hide. Raises StoreError.
    """
    for path in found.unchecked:
        write_atomic(path, read_record(path).to_json())


def count_unchecked(store: Store) -> tuple[int, int]:
    """Return how many records of a store carry no checksum, and how many there are. Raises StoreError."""
    carried = [has_checksum(read_file(path, _BEGINNING)) for path in store.files()]
    return carried.count(False), len(carried)


def _files(folder: Path, problems: list[Finding]) -> Iterator[Path]:
    """Yield all files below a folder, those of a run by step; note folders that cannot be read, and links."""
    try:
        listing = list_folder(folder)
    except StoreError as error:
        problems.append(_problem(folder, error))
        return
    problems += [_problem(link, linked(link)) for link in listing.links]
    yield from sorted([*listing.files, *filter(named_as_record, listing.folders)], key=step_number)
    for inner in listing.folders:
        yield from _files(inner, problems)


def _missing(records: list[StepRecord]) -> list[int]:
    """Return the steps without a record between or before those of a run."""
    if not records or scored_from_files(records[0]):  # those are scored each for itself
        return []
    there = {record.step for record in records}
    # A run that begins at an imported step names none before it.
    first = 0 if records[0].previous_key is not None else min(there)
    return sorted(set(range(first, max(there))) - there)


def _problem(path: Path, error: StoreError) -> Finding:
    return Finding(path, error.message, error.hint or "")
