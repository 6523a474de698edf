"""Pack the records of a finished run into one JSON file, and take such a file, by anybody, into the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cispbench.results.atomic import write_atomic
from cispbench.results.record import StepRecord
from cispbench.results.record_files import run_files, run_folders
from cispbench.results.store import Store, read_record
from cispbench.results.submission_checks import problems
from cispbench.results.submission_text import MAX_BYTES, content_digest, read_untrusted
from cispbench.splits.errors import StoreError
from cispbench.splits.plain_files import read_plain
from cispbench.splits.printable import shown
from cispbench.splits.strict_fields import read_fields, refusal

SCHEMA = 1
_MOST_STEPS = 150


@dataclass(frozen=True)
class PackedRecord:
    """A record as JSON holds it, with the SHA-256 of its content (``content_digest``)."""

    sha256: str
    record: dict[str, Any]


@dataclass(frozen=True)
class PackedRun:
    """The content of the file: the records of all steps of a finished run. ``packed_by``: version of cispbench."""

    format: Literal["cispbench-submission"]
    schema: int
    packed_by: str
    run_key: str
    records: tuple[PackedRecord, ...]


@dataclass(frozen=True)
class Accepted:
    """What accepting a submission did: the files ``written``, and those that held its records already."""

    records: tuple[StepRecord, ...]
    written: tuple[Path, ...]
    unchanged: tuple[Path, ...]


def pack(records: Sequence[StepRecord], version: str) -> bytes:
    """Return a submission of the records of one run, ordered by step, as JSON: the same bytes for the same run.

    ``version``: of this package. Raises StoreError with every reason for which ``accept`` would refuse the run.
    """
    wrong = problems(records)
    if wrong:
        raise refusal("the run cannot be shared", [f"{text}." for text in wrong], StoreError)
    packed = [record.content() for record in records]
    content = {
        "format": "cispbench-submission", "schema": SCHEMA, "packed_by": version, "run_key": records[0].run_key,
        "records": [{"sha256": content_digest(record), "record": record} for record in packed],
    }  # fmt: skip
    data = (json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode()
    if len(data) > MAX_BYTES:
        raise StoreError(f"the run takes {len(data)} bytes, and a submission may have {MAX_BYTES}.")
    return data


def write_submission(path: Path, data: bytes) -> None:
    """Write a submission; a file that holds it already is left. Raises StoreError if it holds anything else."""
    try:
        there = read_plain(path) if path.exists() else None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}.", hint="Name another file by --to.") from error
    if there == data:
        return
    if there is not None:
        raise StoreError(f"{path} holds something else.", hint="Move it away, or name another file by --to.")
    write_atomic(path, data)


def read_submission(path: Path) -> list[StepRecord]:
    """Return the records of a submission, ordered by step, after every check. Raises StoreError saying what is wrong.

    The file is not trusted: its size, nesting, texts and numbers are bounded, nothing in it is run, and no
    path is taken from it.
    """
    submission = read_fields(PackedRun, _known_schema(read_untrusted(path), str(path)), str(path))
    if not 1 <= len(submission.records) <= _MOST_STEPS:
        raise StoreError(f"{path} holds {len(submission.records)} records, not 1 to {_MOST_STEPS}.")
    records = []
    for place, packed in enumerate(submission.records):
        if content_digest(packed.record) != packed.sha256:
            raise StoreError(f"{path}: records[{place}] is not what its sha256 {shown(packed.sha256)} says.")
        records.append(StepRecord.from_content(packed.record, f"{path}: records[{place}]"))
    records.sort(key=lambda record: record.step)
    wrong = problems(records)
    if submission.run_key != records[0].run_key:
        wrong.append(f"run_key is {shown(submission.run_key)}, and the records say {shown(records[0].run_key)}")
    if wrong:
        raise refusal(f"{path} is refused", [f"{text}." for text in wrong], StoreError)
    return records


def accept(path: Path, store: Store) -> Accepted:
    """Bring a submission into the store, each record with the origin ``submitted``; all of them, or none.

    Records that the store holds already are not changed. Raises StoreError for everything that ``read_submission``
    refuses, for a run of which the store holds another record, and for a store that cannot be written to; nothing is
    written then.
    """
    records = read_submission(path)
    missing, unchanged = [], []
    there, key = _stored(store, records[0]), records[0].run_key[:10]
    for record in records:
        place = store.place(record)
        if place not in there:
            missing.append(replace(record, origin="submitted"))
        elif replace(there[place], origin=record.origin) == record:
            unchanged.append(place)
        else:
            raise StoreError(
                f"{path} is refused: {place} holds another record of step {record.step} of the run {key}.",
                hint="Two results of one run cannot both stand: move that one away, or accept into another --out.",
            )
    home = store.place(records[0]).parent
    elsewhere = [place for place in there if place.parent != home]
    if elsewhere:
        raise StoreError(
            f"{path} is refused: {elsewhere[0]} has the run's key {key} under another name.",
            hint="Move it away, or accept into another --out.",
        )
    return Accepted(tuple(records), _write_all(store, missing), tuple(unchanged))


def _known_schema(value: Any, place: str) -> Any:
    if not isinstance(value, dict) or value.get("format") != "cispbench-submission":
        raise StoreError(f"{place} is no submission.", hint="`cispbench submit` writes one.")
    schema = value.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise StoreError(
            f"{place}: schema is {shown(schema)}, and this version reads up to {SCHEMA}.", hint="Update cispbench."
        )
    return value


def _stored(store: Store, record: StepRecord) -> dict[Path, StepRecord]:
    """Return the stored records with the run's key, in any folder, and all records in the run's own folder."""
    own = store.place(record).parent
    folders = run_folders(store.runs, f"-{record.run_key[:10]}")
    found = {path: read_record(path) for folder in folders for path in run_files(folder)}
    return {path: there for path, there in found.items() if path.parent == own or there.run_key == record.run_key}


def _write_all(store: Store, records: Sequence[StepRecord]) -> tuple[Path, ...]:
    """Write the records; if one cannot be written, remove those before it."""
    written: list[Path] = []
    try:
        for record in records:
            written.append(store.write(record))
    # Ctrl-C between two steps must not leave half a run, either.
    except BaseException:
        with suppress(OSError):  # the error being raised says more
            for path in written:
                path.unlink()
            store.place(records[0]).parent.rmdir()
        raise
    return tuple(written)
