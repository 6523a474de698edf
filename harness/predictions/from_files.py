"""Score a folder of predicted masks, whatever code has made them; for ``cispbench score``."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cispbench.harness.data.decode import decode_mask, read_regular_file
from cispbench.harness.data.labels import relabel, to_table
from cispbench.harness.data.source import Source
from cispbench.harness.data.transforms import EvalTransform, EvalView
from cispbench.harness.evaluate import confusion_matrix
from cispbench.harness.machine.environment import describe_environment, describe_git, peak_host_bytes
from cispbench.harness.predictions.score_request import Labels, ScoreRequest
from cispbench.results.protocols import load_protocol
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
from cispbench.results.run_rules import PREDICTIONS
from cispbench.results.submission_checks import is_name
from cispbench.results.submission_text import content_digest
from cispbench.splits.errors import DataError, UsageError
from cispbench.splits.selection import digest
from cispbench.splits.settings import ILLEGAL, VOID, Setting, parse_setting

_NAMED = 5  # files that an error names
_PNG_SIZE = slice(16, 24)  # width and height in the header


@dataclass(frozen=True)
class _PredictionFolder:
    """A request with its names resolved: ``view`` is what of each image is counted.

    A mask has the size of its image, and then goes through the view as the image does, or the size of the view's crop.
    """

    request: ScoreRequest
    setting: Setting
    view: EvalView

    @property
    def labels(self) -> Labels:
        return self.request.labels or "index"

    def table(self) -> Tensor:
        """Return the class index of each of the 256 values of a mask; void and classes not learnt yet are illegal."""
        known = self.setting.num_classes(self.request.step)
        table = list(range(256)) if self.labels == "index" else list(self.setting.test_table())
        return to_table([label if 0 <= label < known else ILLEGAL for label in table])


def checked_setting(request: ScoreRequest) -> Setting:
    """Return the setting that a request names. Raises UsageError for what it cannot mean."""
    setting = parse_setting(request.setting)
    for option, name in (("--method", request.method), ("--model", request.model)):
        if not is_name(name):
            raise UsageError(
                f"{option} {name!r} is not a valid name.",
                hint="Use letters, digits and _+.- (64 at most), a letter first.",
            )
    if request.step > setting.last_step:
        raise UsageError(f"--step {request.step}: the last step of {setting.name} is {setting.last_step}.")
    if request.labels is None and setting.learning_order != tuple(range(len(setting.learning_order))):
        raise UsageError(
            f"{setting.name} learns its classes in another order than their numbers'.",
            hint="Say what the masks hold: --labels index or --labels number.",
        )
    return setting


def score_folder(
    request: ScoreRequest, source: Source, progress: Callable[[int, int], None] | None = None
) -> StepRecord:
    """Count the predictions against the test masks of ``source`` and return the record, of origin ``predictions``.

    ``progress`` is called with (images done, all). Raises UsageError as ``checked_setting`` does, DataError naming the
    file that is missing, not expected, of another size, unreadable, or that holds a label it cannot.
    """
    started = time.perf_counter()
    view = request.view or ("full" if source.kind == "synthetic" else "crop")
    size = load_protocol("strict").size if view == "crop" else None
    folder = _PredictionFolder(request, checked_setting(request), EvalView(size, size))
    ids = source.ids("val")
    _check_files(request.folder, ids)
    classes = folder.setting.num_foreground + 1
    total, sums = torch.zeros(classes, classes, dtype=torch.int64), []
    for done, (target, prediction, line) in enumerate(_pairs(folder, source, ids), start=1):
        total += confusion_matrix(prediction, target, classes)
        sums.append(line)
        if progress is not None:
            progress(done, len(ids))
    return _record(folder, source, total, digest(sums), time.perf_counter() - started)


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


def _pairs(folder: _PredictionFolder, source: Source, ids: tuple[str, ...]) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yield target and prediction of every image, int64 (H, W), and a line of its name and its file's checksum."""
    truth, table = to_table(folder.setting.test_table()), folder.table()
    transform = EvalTransform(folder.view)
    for image_id in ids:
        path = folder.request.folder / f"{image_id}.png"
        content = read_regular_file(path, "prediction")
        image, mask = source.read("val", image_id)
        full_target = relabel(mask, truth, f"the mask of the test image {image_id}")
        size = _size(path, content, full_target, folder.view)
        prediction = _read(path, content, size, folder, table)
        target = transform(image, full_target)[1]
        if size == tuple(full_target.shape):
            # Where the view pads, it pads both: with void, which the target leaves out of the count.
            prediction = transform(image, prediction)[1]
        yield target.long(), prediction.long(), f"{image_id}\t{hashlib.sha256(content).hexdigest()}"


def _size(path: Path, content: bytes, target: Tensor, view: EvalView) -> tuple[int, int]:
    """Return a mask's (height, width) by its header. Raises DataError."""
    # Before it is decoded: a file of a few kilobytes can hold an image of gigabytes.
    width, height = (int.from_bytes(content[_PNG_SIZE][at : at + 4]) for at in (0, 4))
    allowed = [tuple(target.shape)] + ([(view.crop, view.crop)] if view.crop else [])
    if content.startswith(b"\x89PNG") and (height, width) not in allowed:
        sizes = " or ".join(f"{high} x {wide}" for high, wide in dict.fromkeys(allowed))
        raise DataError(
            f"the prediction {path} has {height} x {width} pixels (height x width), not {sizes}.",
            hint="Save it at the size of its image, or as the view sees it.",
        )
    return height, width


def _read(path: Path, content: bytes, size: tuple[int, int], folder: _PredictionFolder, table: Tensor) -> Tensor:
    """Return the class index of every pixel, uint8 (H, W). Raises DataError."""
    setting, step = folder.setting, folder.request.step
    try:
        image, _ = decode_mask(path, content, setting.dataset)
        mask = torch.from_numpy(np.array(image))
        if tuple(mask.shape) != size:  # a forged file with a second header
            raise DataError(
                f"the prediction {path} is {tuple(mask.shape)} (height, width), and its header says {size}."
            )
        return relabel(mask, table, f"the prediction {path}")
    except DataError as error:
        legal = (
            f"0 to {setting.num_classes(step) - 1}, places in the order of learning"
            if folder.labels == "index"
            else f"0 and the class numbers {', '.join(map(str, setting.classes_seen(step)))}"
        )
        raise DataError(
            error.message,
            hint=f"A prediction is a palette or 8-bit grey PNG. After step {step} of {setting.name}, by "
            f"--labels {folder.labels}, it holds {legal}; no void ({VOID}), no class that is yet to be learnt.",
        ) from error


def _record(folder: _PredictionFolder, source: Source, counts: Tensor, sums: str, seconds: float) -> StepRecord:
    request, setting, view = folder.request, folder.setting, folder.view
    recipe = {"evaluation": {"resize_short": view.resize_short, "crop": view.crop}}
    # The keys are hashes of the masks and of what they are said to be: the same folder scored again is the same record.
    run = {
        "method": request.method, "model": request.model, "seed": request.seed, "profile": request.profile,
        "setting": setting.name, "data": source.fingerprint, **recipe,
    }  # fmt: skip
    made, git = {"labels": folder.labels, "sha256": sums}, dict[str, Any](describe_git())
    return StepRecord(
        schema=SCHEMA,
        key=content_digest({"predictions": made, "step": request.step, **run}),
        previous_key=None,
        run_key=content_digest({"predictions": None, **run}),
        setting=setting.name,
        dataset=setting.dataset,
        scenario=setting.scenario,
        task=setting.task,
        order=setting.order,
        learning_order=setting.learning_order,
        step=request.step,
        steps=len(setting.steps),
        classes=setting.steps[request.step].classes,
        method=MethodUsed(request.method, 1, {}),
        joint=False,
        profile=request.profile,
        model=ModelUsed(request.model, 0, "unknown", None),
        seed=request.seed,
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
        exemplars=None,
        supervision=(),
    )
