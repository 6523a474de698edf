"""Score a folder of predicted masks: any code base can enter, whatever has made its predictions."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cispbench.harness.data.decode import decode_mask, read_bytes
from cispbench.harness.data.labels import relabel, to_table
from cispbench.harness.data.source import Source
from cispbench.harness.data.transforms import EvalView, build_eval
from cispbench.harness.evaluate import confusion_matrix
from cispbench.harness.machine.environment import describe_environment, describe_git, peak_host_bytes
from cispbench.results.record import SCHEMA, StepRecord, confusion_rows
from cispbench.results.record_fields import (
    DataUsed,
    Execution,
    GitState,
    Losses,
    Memory,
    MethodUsed,
    ModelUsed,
    Timing,
)
from cispbench.results.submission_checks import PREDICTIONS, is_name
from cispbench.results.submission_text import content_digest
from cispbench.splits.errors import DataError, UsageError
from cispbench.splits.selection import digest
from cispbench.splits.settings import ILLEGAL, VOID, Setting

Labels = Literal["index", "number"]
_NAMED = 5
_PNG_SIZE = slice(16, 24)  # width and height in the header


@dataclass(frozen=True)
class Entry:
    """Whose predictions they are: names of a method and a model, the seed and the profile they count for."""

    method: str
    model: str
    seed: int
    profile: str

    def __post_init__(self) -> None:
        for option, name in (("--method", self.method), ("--model", self.model)):
            if not is_name(name):
                raise UsageError(
                    f"{option} {name!r} is no name.", hint="Use letters, digits and _+.- (64 at most), a letter first."
                )


@dataclass(frozen=True)
class Predictions:
    """A folder with a mask ``<id>.png`` for every test image, made after ``step`` of a setting.

    ``labels``: ``index``, places in the order of learning (0 background), or ``number``, the data set's own class
    numbers. ``view``: what of each image is counted. A mask has the size of the image, and is then seen through the
    view as the image is, or the size of the view's crop.
    """

    folder: Path
    setting: Setting
    step: int
    labels: Labels
    view: EvalView

    def table(self) -> Tensor:
        """Return the class index of each of the 256 values of a mask; void and classes not learnt are refused."""
        known = self.setting.num_classes(self.step)
        table = list(range(256)) if self.labels == "index" else list(self.setting.test_table())
        return to_table([label if 0 <= label < known else ILLEGAL for label in table])


def score_predictions(
    predictions: Predictions, source: Source, entry: Entry, progress: Callable[[int, int], None] | None = None
) -> StepRecord:
    """Count the predictions against the test masks of ``source`` and return the record, of origin ``predictions``.

    ``progress`` is called with (images done, all). Raises DataError naming the file that is missing, too many, of
    another size, unreadable or that holds a label it cannot.
    """
    started = time.perf_counter()
    setting, ids = predictions.setting, source.ids("val")
    _check_files(predictions.folder, ids)
    classes = setting.num_foreground + 1
    total, sums = torch.zeros(classes, classes, dtype=torch.int64), []
    for done, (target, prediction, line) in enumerate(_pairs(predictions, source, ids), start=1):
        total += confusion_matrix(prediction, target, classes)
        sums.append(line)
        if progress is not None:
            progress(done, len(ids))
    return _record(predictions, source, entry, total, digest(sums), time.perf_counter() - started)


def _check_files(folder: Path, ids: tuple[str, ...]) -> None:
    """Raise DataError unless the folder holds exactly the masks; hidden files do not count."""
    try:
        there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise DataError(
            f"cannot look into {folder}: {error}.", hint="Name the folder of the masks by --pred."
        ) from error
    wanted = {f"{image_id}.png" for image_id in ids}
    for what, names in (("lacks", wanted - there), ("should not hold", there - wanted)):
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            raise DataError(
                f"{folder} {what} {', '.join(sorted(names)[:_NAMED])}{more}.",
                hint=f"It has to hold a mask <id>.png for each of the {len(ids)} test images, and nothing else.",
            )


def _pairs(predictions: Predictions, source: Source, ids: tuple[str, ...]) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yield target and prediction, int64 of one shape, of every image, and a line of its name and its file's sum."""
    truth, table = to_table(predictions.setting.test_table()), predictions.table()
    transform = build_eval(predictions.view)
    for image_id in ids:
        path = predictions.folder / f"{image_id}.png"
        content = read_bytes(path)
        image, mask = source.read("val", image_id)
        target = relabel(mask, truth, f"the mask of the test image {image_id}")
        size = _size(path, content, target, predictions.view)
        prediction = _read(path, content, size, predictions, table)
        seen = transform(image, target)[1]
        if size == tuple(target.shape):
            # Where the view pads, it pads both: with void, which the target leaves out of the count.
            prediction = transform(image, prediction)[1]
        yield seen.long(), prediction.long(), f"{image_id}\t{hashlib.sha256(content).hexdigest()}"


def _size(path: Path, content: bytes, target: Tensor, view: EvalView) -> tuple[int, int]:
    """Return a mask's (height, width), told by its header before it is decoded. Raises DataError."""
    width, height = (int.from_bytes(content[_PNG_SIZE][at : at + 4]) for at in (0, 4))
    allowed = [tuple(target.shape)] + ([(view.crop, view.crop)] if view.crop else [])
    if content.startswith(b"\x89PNG") and (height, width) not in allowed:
        sizes = " or ".join(f"{high} x {wide}" for high, wide in dict.fromkeys(allowed))
        raise DataError(
            f"the prediction {path} has {height} x {width} pixels (height x width), not {sizes}.",
            hint="Save it at the size of its image, or as the view sees it.",
        )
    return height, width


def _read(path: Path, content: bytes, size: tuple[int, int], predictions: Predictions, table: Tensor) -> Tensor:
    """Return the class index of every pixel, uint8. Raises DataError."""
    setting = predictions.setting
    try:
        image, _ = decode_mask(path, content, setting.dataset)
        mask = torch.from_numpy(np.array(image))
        if tuple(mask.shape) != size:  # a second header
            raise DataError(
                f"the prediction {path} is {tuple(mask.shape)} (height, width), and its header says {size}."
            )
        return relabel(mask, table, f"the prediction {path}")
    except DataError as error:
        learnt = setting.num_classes(predictions.step)
        legal = (
            f"0 to {learnt - 1}, places in the order of learning"
            if predictions.labels == "index"
            else f"0 and the class numbers {', '.join(map(str, setting.classes_seen(predictions.step)))}"
        )
        raise DataError(
            error.message,
            hint=f"A prediction is a palette or 8-bit grey PNG. After step {predictions.step} of {setting.name}, by "
            f"--labels {predictions.labels}, it holds {legal}; no void ({VOID}), no class that is yet to be learnt.",
        ) from error


def _record(
    predictions: Predictions, source: Source, entry: Entry, counts: Tensor, sums: str, seconds: float
) -> StepRecord:
    setting, step, view = predictions.setting, predictions.step, predictions.view
    recipe = {"evaluation": {"resize_short": view.resize_short, "crop": view.crop}}
    run = {
        "method": entry.method, "model": entry.model, "seed": entry.seed, "profile": entry.profile,
        "setting": setting.name, "data": source.fingerprint, **recipe,
    }  # fmt: skip
    made, git = {"labels": predictions.labels, "sha256": sums}, dict[str, Any](describe_git())
    return StepRecord(
        schema=SCHEMA,
        key=content_digest({"predictions": made, "step": step, **run}),
        previous_key=None,
        run_key=content_digest({"predictions": None, **run}),
        setting=setting.name,
        dataset=setting.dataset,
        scenario=setting.scenario,
        task=setting.task,
        order=setting.order,
        learning_order=setting.learning_order,
        step=step,
        steps=len(setting.steps),
        classes=setting.steps[step].classes,
        method=MethodUsed(entry.method, 1, {}),
        joint=False,
        profile=entry.profile,
        model=ModelUsed(entry.model, 0, "unknown", None),
        seed=entry.seed,
        data=DataUsed(source.kind, source.fingerprint, 0, len(source.ids("val")), digest([])),
        recipe=recipe,
        confusion=confusion_rows(counts.numpy()),
        losses=Losses((), {}),
        iterations=0,
        timing=Timing(0.0, seconds, seconds, 0.0, False),
        memory=Memory(peak_host_bytes(), None),
        skipped_steps=0,
        environment={**describe_environment("cpu"), PREDICTIONS: made},
        git=GitState(**git),
        quirks=(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        execution=Execution(devices=1, micro_batch=None),
        trained_for=None,
        origin="predictions",
    )
