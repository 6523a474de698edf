"""Check the records of a submitted run against its setting, each other, and what is known of the data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from operator import attrgetter
from pathlib import Path

import numpy as np

from cispbench.results.record import StepRecord
from cispbench.results.submission_text import shown
from cispbench.splits.errors import SettingError
from cispbench.splits.selection import golden_list, golden_steps, has_golden
from cispbench.splits.settings import Setting, parse_setting
from cispbench.splits.strict_fields import read_fields
from cispbench.splits.strict_yaml import load_yaml

PREDICTIONS = "predictions"  # in the environment of a record that was scored from files
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
# The kinds of data that a run of a profile can have.
_KINDS = {"paper": ("full", "mini"), "mini": ("full", "mini"), "quick": ("synthetic",)}
# What all steps of a run have in common.
_SHARED = (
    "run_key", "setting", "method", "joint", "profile", "seed", "recipe", "steps", "origin", "model.name",
    "model.weights", "model.weights_sha256", "data.kind", "data.fingerprint", "data.val_images",
)  # fmt: skip
_PIXELS = Path(__file__).parent / "submission_pixels.yaml"
_NAMED = 5
_LEAST_PIXELS = 10_000  # an image of the full data on average, void left out, under any view worth a comparison


@dataclass(frozen=True)
class KnownPixels:
    """Pixels of each class number in the known test masks under a view, void left out; ``slack``: allowed share."""

    kind: str
    images: int
    resize_short: int | None
    crop: int | None
    slack: float
    pixels: tuple[int, ...]


def problems(records: Sequence[StepRecord]) -> list[str]:
    """Return what is wrong with the records of one run, ordered by step; an empty list if nothing is.

    - Names can be parts of a path. Keys are SHA-256 sums, and each step names the key of the step before.
    - What the setting decides is as the setting says. What a run shares is the same in every step.
    - No step predicts a class that is not learnt yet. The ground truth is the same at every step.
    - Full and synthetic data have the known images and pixels.
    """
    found: list[str] = []
    for record in records:
        wrong = [*_texts(record), *_facts(record)]
        found += [f"step {record.step}: {text}" for text in wrong]
    found += _run(records)
    # Counts are judged by the setting; where that is wrong there is nothing to judge by.
    if not found:
        for record in records:
            found += [f"step {record.step}: {text}" for text in _counts(record, parse_setting(record.setting))]
        found += _ground_truth(records)
    return found


def is_name(text: str) -> bool:
    """Return whether a text can name a method or model, and be part of a path: up to 64 letters, digits, ``_+.-``."""
    return _NAME.fullmatch(text) is not None


def scored_from_files(record: StepRecord) -> bool:
    """Return whether the record was made from predicted masks, here or by a submitter."""
    return record.origin == "predictions" or PREDICTIONS in record.environment


def _texts(record: StepRecord) -> Iterator[str]:
    texts = [("quirks", text, *_WORD) for text in record.quirks]
    texts += [("losses.terms", text, *_WORD) for text in record.losses.terms]
    for field, (pattern, wanted) in _TEXTS.items():
        if record.trained_for is not None or not field.startswith("trained_for."):
            texts.append((field, attrgetter(field)(record), pattern, wanted))
    for field, text, pattern, wanted in texts:
        if text is not None and not pattern.fullmatch(text):
            yield f"{field} is {shown(text)}, not {wanted}"


def _facts(record: StepRecord) -> Iterator[str]:
    kinds = _KINDS.get(record.profile)
    if kinds is None:
        yield f"profile is {shown(record.profile)}, not one of {', '.join(_KINDS)}"
    elif record.data.kind not in kinds:
        yield f"data.kind is {record.data.kind!r}, which the profile {record.profile} never meets"
    if datetime.fromisoformat(record.created) > datetime.now(UTC) + timedelta(days=1):
        yield f"created is {shown(record.created)}, which is yet to come"
    try:
        setting = parse_setting(record.setting)
    except SettingError as error:
        yield f"setting: {shown(error.message)}"
        return
    trained = setting.joint() if record.joint else setting
    decided = {
        "setting": setting.name, "dataset": setting.dataset, "scenario": setting.scenario, "task": setting.task,
        "order": setting.order, "learning_order": setting.learning_order, "steps": len(trained.steps),
        "classes": trained.steps[record.step].classes if record.step <= trained.last_step else None,
    }  # fmt: skip
    for field, value in decided.items():
        if getattr(record, field) != value:
            yield f"{field} is {shown(getattr(record, field))}, and the setting says {shown(value)}"


def _run(records: Sequence[StepRecord]) -> Iterator[str]:
    """Yield what the records do not agree in, and where the chain of steps is broken."""
    first, last = records[0], records[-1]
    for field in _SHARED:
        value = attrgetter(field)
        if any(value(record) != value(first) for record in records):
            yield f"{field} is not the same in every step"
    if len(set(map(scored_from_files, records))) > 1:
        yield "scored from files is not the same in every step"
    steps = [record.step for record in records]
    if not last.finished:
        yield f"the last of its steps is {last.step}, and the run has {last.steps}: it is not finished"
    if scored_from_files(first):
        if any(record.previous_key is not None for record in records) or len(set(steps)) < len(steps):
            yield "steps scored from files have no step before them, and each is there once"
        return
    # An imported run begins after step 0.
    if steps != list(range(steps[0], steps[0] + len(steps))):
        yield f"its steps are {shown(steps)}, not one after the other"
        return
    previous: str | None = None
    for record in records:
        if record.previous_key != previous:
            yield f"step {record.step}: previous_key is {shown(record.previous_key)}, not the key of the step before"
        previous = record.key
    if len({record.key for record in records}) < len(records):
        yield "two of its steps have the same key"


def _counts(record: StepRecord, setting: Setting) -> Iterator[str]:
    """Yield what cannot be true of a record's images and of its confusion matrix."""
    counts = record.matrix()
    known = counts.shape[0] if record.joint else setting.num_classes(record.step)
    if counts[:, known:].any():
        row, column = np.argwhere(counts[:, known:])[0].tolist()
        yield f"confusion[{row}][{known + column}] counts predictions of a class that is not learnt yet"
    # By Python's integers: a sum of int64 could overflow to a harmless number.
    total, images = sum(map(sum, record.confusion)), record.data.val_images
    view, full = _view(record), record.data.kind == "full"
    crop = view[1] if view else None
    if total == 0 or images == 0:
        yield f"{images} test images with {total} pixels were counted"
    elif full and view is None:
        yield "recipe.evaluation does not tell resize_short and crop, each a number of pixels or null"
    elif full and total < images * _LEAST_PIXELS:
        yield f"{images} images of the full data have more than {_LEAST_PIXELS} pixels each, and {total} were counted"
    elif crop is not None and total > images * crop**2:
        yield f"the confusion matrix counts {total} pixels, and {images} crops of {crop} x {crop} have fewer"
    yield from _images(record, setting)
    yield from _known_pixels(record, counts.sum(axis=1).tolist(), setting)


def _images(record: StepRecord, setting: Setting) -> Iterator[str]:
    if record.data.kind != "full":
        return
    if not has_golden(setting.dataset):
        yield f"data.kind is 'full', and no lists are published for {setting.dataset}"
        return
    tested, _ = golden_list(setting.dataset, "val")
    if record.data.val_images != tested:
        yield f"data.val_images is {record.data.val_images}, and the full data have {tested}"
    lists = None if record.joint or scored_from_files(record) else golden_steps(setting)
    if lists is not None and (record.data.train_images, record.data.list_sha256) != lists[record.step]:
        yield f"data.train_images and list_sha256 are not those of the published list ({lists[record.step][0]} images)"


def _known_pixels(record: StepRecord, rows: list[int], setting: Setting) -> Iterator[str]:
    for known in _table().get(setting.dataset, ()):
        if known.kind != record.data.kind or (known.resize_short, known.crop) != _view(record):
            continue
        if record.data.val_images != known.images:
            yield f"data.val_images is {record.data.val_images}, and the {known.kind} data have {known.images}"
        wanted = [known.pixels[number] for number in setting.learning_order]
        wrong = [
            f"{index} ({row}, not {want})"
            for index, (row, want) in enumerate(zip(rows, wanted, strict=True))
            if abs(row - want) > known.slack * want
        ]
        if wrong:
            more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            yield f"rows of the confusion matrix lack or exceed the data's pixels: {', '.join(wrong[:_NAMED])}{more}"


def _view(record: StepRecord) -> tuple[int | None, int | None] | None:
    """Return (resize_short, crop) of the test, None for one that is not done; None where the recipe does not say."""
    view = record.recipe.get("evaluation")
    if not isinstance(view, dict) or not {"resize_short", "crop"} <= view.keys():
        return None
    sides = view["resize_short"], view["crop"]
    return sides if all(side is None or (type(side) is int and side > 0) for side in sides) else None


def _ground_truth(records: Sequence[StepRecord]) -> Iterator[str]:
    rows = [record.matrix().sum(axis=1).tolist() for record in records]
    for record, sums in zip(records, rows, strict=True):
        if sums != rows[0]:
            index = next(index for index, (one, other) in enumerate(zip(sums, rows[0], strict=True)) if one != other)
            yield f"step {record.step}: row {index} counts {sums[index]} pixels, and {rows[0][index]} at the first step"


@cache
def _table() -> dict[str, tuple[KnownPixels, ...]]:
    entries = load_yaml(_PIXELS)
    return {
        name: tuple(read_fields(KnownPixels, entry, f"{_PIXELS} {name}") for entry in rows)
        for name, rows in entries.items()
    }
