"""What must be true of every record and run, whoever made them: by the setting, by each other, by the known data.

These rules hold for all that is read from a store; ``submission_checks`` adds those for files of strangers. They refuse
what cannot have been measured. They do not know whether a number that is possible is true.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cispbench.results.record_fields import StepFacts
from cispbench.splits.errors import SettingError
from cispbench.splits.printable import shown
from cispbench.splits.selection import golden_list, golden_steps, has_golden
from cispbench.splits.settings import Setting, parse_setting
from cispbench.splits.strict_fields import read_fields
from cispbench.splits.strict_yaml import load_yaml

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]

PREDICTIONS = "predictions"  # in the environment of a record that was scored from files
# What all steps of a run have in common. Not the method's code: other methods may have trained the base that a run
# shares, and code may be edited without a new version, which a run says.
_SHARED = (
    "run_key", "setting", "method.name", "method.version", "method.options", "joint", "profile", "seed", "recipe",
    "steps", "origin", "model.name", "model.weights", "model.weights_sha256", "data.kind", "data.fingerprint",
    "data.val_images",
)  # fmt: skip
# The kinds of data that a run of a profile of ours can have; profiles of others meet what they like.
KINDS = {"paper": ("full", "mini"), "mini": ("full", "mini"), "quick": ("synthetic",)}
_PIXELS = Path(__file__).parent / "known_pixels.yaml"
_NAMED = 5
_LEAST_PIXELS = 10_000  # an image of the full data on average, void left out, under a view that sees so many


@dataclass(frozen=True)
class KnownPixels:
    """Pixels of each class number in the known test masks under a view, void left out; ``slack``: allowed share."""

    kind: str
    images: int
    resize_short: int | None
    crop: int | None
    slack: float
    pixels: tuple[int, ...]


def step_problems(record: StepFacts, counts: Counts) -> list[str]:
    """Return what cannot be true of a record and its confusion matrix (C, C); an empty list if nothing is wrong.

    What the setting decides is as the setting says. No class is predicted before it is learnt. Full and synthetic data
    have the known images and pixels.
    """
    try:
        setting = parse_setting(record.setting)
    except SettingError as error:
        return [f"setting: {shown(error.message)}"]
    # Counts are judged by the setting; where that is wrong there is nothing to judge by.
    return [*_facts(record, setting)] or [*_counts(record, counts, setting)]


def run_problems(steps: Sequence[tuple[StepFacts, Counts]]) -> list[str]:
    """Return in what the recorded steps of a run, in their order, do not fit together; an empty list if they do.

    What a run shares is the same in every step. Each step names the key of the step before, if that one is recorded.
    Exemplars come from that step and from its own ones; maps are read in every step but a base that was trained without
    them. The ground truth is the same at every step.
    """
    records = [record for record, _ in steps]
    found = [
        f"{field} is not the same in every step"
        for field in _SHARED
        if any(attrgetter(field)(record) != attrgetter(field)(records[0]) for record in records)
    ]
    if len(set(map(scored_from_files, records))) > 1:
        found.append("scored from files is not the same in every step")
    return [*found, *_chain(records), *_extras(records), *_ground_truth(steps)]


def scored_from_files(record: StepFacts) -> bool:
    """Return whether the record was made from predicted masks, here or by a submitter."""
    return record.origin == "predictions" or PREDICTIONS in record.environment


def known_test(record: StepFacts) -> KnownPixels | None:
    """Return what is known of the test masks by a record's data set, kind of data and view, or None."""
    for known in _table().get(record.dataset, ()):
        if (known.kind, known.resize_short, known.crop) == (record.data.kind, *(_view(record) or ("", ""))):
            return known
    return None


def _facts(record: StepFacts, setting: Setting) -> Iterator[str]:
    if record.data.kind not in KINDS.get(record.profile, (record.data.kind,)):
        yield f"data.kind is {record.data.kind!r}, which the profile {record.profile} never meets"
    trained = setting.joint() if record.joint else setting
    decided = {
        "setting": setting.name, "dataset": setting.dataset, "scenario": setting.scenario, "task": setting.task,
        "order": setting.order, "learning_order": setting.learning_order, "steps": len(trained.steps),
        "classes": trained.steps[record.step].classes if record.step <= trained.last_step else None,
    }  # fmt: skip
    for field, value in decided.items():
        if getattr(record, field) != value:
            yield f"{field} is {shown(getattr(record, field))}, and the setting says {shown(value)}"


def _chain(records: Sequence[StepFacts]) -> Iterator[str]:
    if len({record.key for record in records}) < len(records):
        yield "two of its steps have the same key"
    if scored_from_files(records[0]):
        if any(record.previous_key is not None for record in records):
            yield "steps scored from files have no step before them"
        return
    for earlier, later in pairwise(records):
        if later.step == earlier.step + 1 and later.previous_key != earlier.key:
            yield f"step {later.step}: previous_key is {shown(later.previous_key)}, not the key of the step before"


def _extras(records: Sequence[StepFacts]) -> Iterator[str]:
    """Yield what cannot be true of the exemplars and the maps of steps that follow each other."""
    if scored_from_files(records[0]):
        return
    for earlier, later in pairwise(records):
        before, now = set(earlier.supervision), set(later.supervision)
        # The first one may be a base that methods share, or a step that was trained elsewhere.
        if before - now if earlier is records[0] else before != now:
            texts = [", ".join(map(shown, sorted(names))) or "nothing" for names in (now, before)]
            yield f"step {later.step}: supervision is {texts[0]}, and {texts[1]} at the step before"
        kept, used = (one.exemplars.images if one.exemplars else 0 for one in (earlier, later))
        most = kept + earlier.data.train_images
        if later.step == earlier.step + 1 and used > most:
            yield f"step {later.step}: exemplars is {used} images, and there are {most} to choose from"


def _counts(record: StepFacts, counts: Counts, setting: Setting) -> Iterator[str]:
    """Yield what cannot be true of a record's images and of its confusion matrix."""
    known = counts.shape[0] if record.joint else setting.num_classes(record.step)
    if counts[:, known:].any():
        row, column = np.argwhere(counts[:, known:])[0].tolist()
        yield f"confusion[{row}][{known + column}] counts predictions of a class that is not learnt yet"
    rows = counts.sum(axis=1)
    # By Python's integers: a sum of int64 could overflow to a harmless number.
    total, images, view = sum(rows.tolist()), record.data.val_images, _view(record)
    crop = view[1] if view else None
    if total == 0 or images == 0:
        yield f"{images} test images with {total} pixels were counted"
    elif crop is not None and total > images * crop**2:
        yield f"the confusion matrix counts {total} pixels, and {images} crops of {crop} x {crop} have fewer"
    if record.data.kind == "full" and has_golden(setting.dataset):
        yield from _full_data(record, total, setting)
    yield from _known_pixels(record, rows, setting)


def _full_data(record: StepFacts, total: int, setting: Setting) -> Iterator[str]:
    """Yield what cannot be true of a test on the full data of a data set with published lists."""
    view, images = _view(record), record.data.val_images
    if view is None:
        yield "recipe.evaluation does not tell resize_short and crop, each a number of pixels or null"
        return
    # A view of few pixels has fewer; half of its square leaves room for void.
    least = min([_LEAST_PIXELS, *(side**2 // 2 for side in view if side is not None)])
    if setting.dataset in _table() and total < images * least:
        yield f"{images} images of the full data have more than {least} pixels each, and {total} were counted"
    tested, _ = golden_list(setting.dataset, "val")
    if images != tested:
        yield f"data.val_images is {images}, and the full data have {tested}"
    lists = None if record.joint or scored_from_files(record) else golden_steps(setting)
    if lists is not None and (record.data.train_images, record.data.list_sha256) != lists[record.step]:
        yield f"data.train_images and list_sha256 are not those of the published list ({lists[record.step][0]} images)"


def _known_pixels(record: StepFacts, rows: Counts, setting: Setting) -> Iterator[str]:
    known = known_test(record)
    # Scenes are drawn in other numbers, too: for a short run, or to see whether a method keeps its contract.
    if known is None or record.data.val_images != known.images:
        return
    wanted = np.array(known.pixels)[list(setting.learning_order)]
    wrong = [
        f"{index} ({rows[index]}, not {wanted[index]})"
        for index in np.flatnonzero(np.abs(rows - wanted) > known.slack * wanted)
    ]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        yield f"rows of the confusion matrix lack or exceed the data's pixels: {', '.join(wrong[:_NAMED])}{more}"


def _view(record: StepFacts) -> tuple[int | None, int | None] | None:
    """Return (resize_short, crop) of the test, None for one that is not done; None where the recipe does not say."""
    view = record.recipe.get("evaluation")
    if not isinstance(view, dict) or not {"resize_short", "crop"} <= view.keys():
        return None
    sides = view["resize_short"], view["crop"]
    return sides if all(side is None or (type(side) is int and side > 0) for side in sides) else None


def _ground_truth(steps: Sequence[tuple[StepFacts, Counts]]) -> Iterator[str]:
    first = steps[0][1].sum(axis=1)
    for record, counts in steps:
        rows = counts.sum(axis=1)
        if len(rows) == len(first) and (rows != first).any():
            index = int(np.flatnonzero(rows != first)[0])
            yield f"step {record.step}: row {index} counts {rows[index]} pixels, and {first[index]} at the first step"


@cache
def _table() -> dict[str, tuple[KnownPixels, ...]]:
    entries = load_yaml(_PIXELS)
    return {
        name: tuple(read_fields(KnownPixels, entry, f"{_PIXELS} {name}") for entry in rows)
        for name, rows in entries.items()
    }
