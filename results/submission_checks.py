"""Check the records of a submitted run: by the rules that hold for every run, and those for files of strangers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from operator import attrgetter

from cispbench.results.record import StepRecord
from cispbench.results.run_rules import KINDS, known_test, run_problems, scored_from_files, step_problems
from cispbench.splits.errors import SettingError
from cispbench.splits.printable import shown
from cispbench.splits.selection import has_golden

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_+.-]{0,62}[A-Za-z0-9_+])?")
_WORD = re.compile(r"[A-Za-z0-9 _+.,:/()-]{1,128}"), "a word of up to 128 plain characters"
_KEY = re.compile(r"[0-9a-f]{64}"), "a SHA-256 sum (64 hexadecimal digits)"
_PATH_NAME = _NAME, "a name of up to 64 letters, digits and _+.-"
_TEXTS = {
    "method.name": _PATH_NAME, "model.name": _PATH_NAME, "trained_for.method": _PATH_NAME,
    "model.weights": _WORD, "trained_for.setting": _WORD,
    "key": _KEY, "previous_key": _KEY, "run_key": _KEY, "trained_for.run_key": _KEY, "data.fingerprint": _KEY,
    "data.list_sha256": _KEY, "model.weights_sha256": _KEY,
    "git.commit": (re.compile(r"[0-9a-f]{7,64}"), "a commit"),
}  # fmt: skip


def problems(records: Sequence[StepRecord]) -> list[str]:
    """Return what is wrong with the records of one run, ordered by step; an empty list if nothing is.

    - Names can be parts of a path. Keys are SHA-256 sums.
    - The profile, the data and their published lists are known here, and the run is finished.
    - What ``run_rules`` asks of every run.
    """
    found: list[str] = []
    for record in records:
        wrong = [*_texts(record), *_facts(record), *step_problems(record, record.matrix())]
        found += [f"step {record.step}: {text}" for text in wrong]
    found += _whole(records)
    return found + run_problems([(record, record.matrix()) for record in records])


def is_name(text: str) -> bool:
    """Return whether a text can name a method or model, and be part of a path: up to 64 letters, digits, ``_+.-``."""
    return _NAME.fullmatch(text) is not None


def _texts(record: StepRecord) -> Iterator[str]:
    texts = [("quirks", text, *_WORD) for text in record.quirks]
    texts += [("supervision", text, *_WORD) for text in record.supervision]
    texts += [("losses.terms", text, *_WORD) for text in record.losses.terms]
    for field, (pattern, wanted) in _TEXTS.items():
        if record.trained_for is not None or not field.startswith("trained_for."):
            texts.append((field, attrgetter(field)(record), pattern, wanted))
    for field, text, pattern, wanted in texts:
        if text is not None and not pattern.fullmatch(text):
            yield f"{field} is {shown(text)}, not {wanted}"


def _facts(record: StepRecord) -> Iterator[str]:
    if record.profile not in KINDS:
        yield f"profile is {shown(record.profile)}, not one of {', '.join(KINDS)}"
    if datetime.fromisoformat(record.created) > datetime.now(UTC) + timedelta(days=1):
        yield f"created is {shown(record.created)}, which is yet to come"
    known = known_test(record)
    if known is not None and record.data.kind == "synthetic" and record.data.val_images != known.images:
        yield f"data.val_images is {record.data.val_images}, and the synthetic data have {known.images}"
    with suppress(SettingError):  # an unknown data set; the rules of all runs tell it
        if record.data.kind == "full" and not has_golden(record.dataset):
            yield f"data.kind is 'full', and no lists are published for {record.dataset}"


def _whole(records: Sequence[StepRecord]) -> Iterator[str]:
    """Yield what the run lacks."""
    first, last = records[0], records[-1]
    steps = [record.step for record in records]
    if not last.finished:
        yield f"the last of its steps is {last.step}, and the run has {last.steps}: it is not finished"
    if scored_from_files(first):
        if len(set(steps)) < len(steps):
            yield "of steps scored from files each is there once"
    # An imported run begins after step 0.
    elif steps != list(range(steps[0], steps[0] + len(steps))):
        yield f"its steps are {shown(steps)}, not one after the other"
    elif first.previous_key is not None:
        yield f"step {first.step}: previous_key is {shown(first.previous_key)}, not the key of the step before"
