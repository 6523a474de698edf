"""The predictions of a finished run after every step, from the weights in the step store; for ``cispbench panels``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cispbench.harness.data.companions import Maps
from cispbench.harness.data.loader import EvalLoader
from cispbench.harness.data.normalise import Normalisation
from cispbench.harness.data.source import Source
from cispbench.harness.data.transforms import EvalView
from cispbench.harness.data.workers import explaining_lost_workers
from cispbench.harness.evaluate import Prediction, predictions
from cispbench.harness.machine.devices import to_device
from cispbench.harness.method import Method
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.recipes.fields import Recipe, read_recipe
from cispbench.harness.registry import load_method, make_method
from cispbench.harness.runs.image_lists import ImageLists
from cispbench.harness.runs.keys import evaluation_key
from cispbench.harness.runs.step_store import DamagedStepError, StepStore
from cispbench.results.record import StepRecord
from cispbench.results.store import Store, read_run
from cispbench.splits.errors import DataError, StoreError, UsageError, WeightsError
from cispbench.splits.settings import VOID, Setting, parse_setting

Pixels = NDArray[np.uint8]
_LOST_WEIGHTS = "Where weights are lost, the run's command with another --out trains them again."
Progress = Callable[[str, int, int], None]  # what is done, images done, images in all


class PredictedImage(NamedTuple):
    """A test image as the run's evaluation sees it: uint8 (H, W, 3), and class indices (H, W), 255 void.

    ``predictions``: one (H, W) after every recorded step.
    """

    name: str
    image: Pixels
    truth: Pixels
    predictions: tuple[Pixels, ...]


class ForgottenShare(NamedTuple):
    """A test image, and the share of its pixels that the run has forgotten; see ``RunPredictor.most_forgotten``."""

    name: str
    share: float


@dataclass(frozen=True)
class _CorrectPixels:
    """A count of correct pixels: those of the classes ``first`` up to ``end`` (indices), as a step's model predicts.

    ``sign``: 1 to add the count, -1 to subtract it.
    """

    record: StepRecord
    names: tuple[str, ...]
    first: int
    end: int
    sign: int


@dataclass(frozen=True)
class RecordedRun:
    """A run by its records, ordered by step; ``trained``: its setting as the method learnt it.

    ``method``: that of the run, with its options; its layout says how the network grew, its scores what it predicts.
    """

    records: tuple[StepRecord, ...]
    recipe: Recipe
    setting: Setting
    trained: Setting
    method: Method

    @property
    def steps(self) -> tuple[int, ...]:
        """The recorded steps."""
        return tuple(record.step for record in self.records)

    def view(self) -> EvalView:
        """Return what its evaluation sees of an image."""
        evaluation = self.recipe.evaluation
        return EvalView(evaluation.resize_short, evaluation.crop, self.recipe.data.normalise)


def recorded_run(store: Store, run: str) -> RecordedRun:
    """Return the run whose key starts with ``run``, or whose folder it names.

    Raises UsageError unless it is one run with weights to look for, StoreError for a file that cannot be read.
    """
    records = (read_run(Path(run)) if Path(run).is_dir() else []) or store.find_run(run)
    last = records[-1]
    if last.origin == "predictions":
        raise UsageError(f"the run {last.run_key[:10]} was scored from files of masks: it has no models to ask.")
    setting = parse_setting(last.setting)
    recipe = read_recipe(last.recipe, f"the recipe of the run {last.run_key[:10]}")
    method = make_method(load_method(last.method.name), recipe.method)
    return RecordedRun(tuple(records), recipe, setting, setting.joint() if last.joint else setting, method)


class RunPredictor:
    """Predicts test images with the models of a run, one after the other: a single one is in memory at a time.

    Raises DataError where the data are not those of the run, StoreError naming a step whose weights are missing.
    """

    def __init__(
        self, run: RecordedRun, source: Source, steps: StepStore, device: torch.device, workers: int = 0,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.run, self._source, self._steps, self._device = run, source, steps, device
        self._workers = workers
        self._progress = progress or (lambda what, done, total: None)
        self._check()
        self._maps = self._test_maps()

    def known(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the names, each once. Raises UsageError for one that is no test image."""
        ids = self._source.ids("val")
        there = set(ids)
        for name in names:
            if name not in there:
                close = difflib.get_close_matches(name, ids, n=1)
                like = f"Did you mean {close[0]!r}?" if close else "Or leave --images out, and have them picked."
                raise UsageError(
                    f"there is no test image {name!r}.", hint=f"There are {len(ids)}, {ids[0]} to {ids[-1]}. {like}"
                )
        return tuple(dict.fromkeys(names))

    def predict(self, names: Sequence[str]) -> list[PredictedImage]:
        """Return the named test images with the prediction after every step, in the order given."""
        images: dict[str, tuple[Pixels, Pixels]] = {}
        predictions: dict[str, list[Pixels]] = {name: [] for name in names}
        done, total = 0, len(names) * len(self.run.records)
        for record in self.run.records:
            for name, image, target, prediction in self._predictions(record, names):
                images[name] = _numpy(image.permute(1, 2, 0)), _numpy(target)
                predictions[name].append(_numpy(prediction))
                done += 1
                self._progress("predicting", done, total)
        return [PredictedImage(name, *images[name], tuple(predictions[name])) for name in names]

    def most_forgotten(self, count: int) -> list[ForgottenShare]:
        """Return the test images with the largest share of forgotten pixels, at most ``count``, the largest first.

        For an image x with the ground truth y and the prediction p_t after step t::

            forgotten(x) = sum over i of ([p_s(i) = y(i)] - [p_T(i) = y(i)]) / number of pixels that are not void

        T is the last recorded step, and s the first one that knows the class of i. The sum is over the pixels i with s
        before T; background does not count. The share is negative where the last model is better. Equal shares are
        ordered by name. Raises UsageError for a run with a single recorded step.
        """
        if len(self.run.records) < 2:
            raise UsageError(
                "nothing can be forgotten in a run with a single recorded step.", hint="Name images by --images."
            )
        counts = self._counts()
        total, done = sum(len(part.names) for part in counts), 0
        shares = dict.fromkeys(self._source.ids("val"), 0.0)
        for part in counts:
            for name, _, target, prediction in self._predictions(part.record, part.names):
                correct = (prediction == target) & (target >= part.first) & (target < part.end)
                shares[name] += part.sign * int(correct.sum()) / max(1, int((target != VOID).sum()))
                done += 1
                self._progress("looking for what is forgotten", done, total)
        found = [ForgottenShare(name, share) for name, share in shares.items()]
        return sorted(found, key=lambda image: (-image.share, image.name))[:count]

    def _counts(self) -> list[_CorrectPixels]:
        """Return the counts of ``most_forgotten``: each step's own classes after it, and all of them after the last."""
        trained, (*earlier, last) = self.run.trained, self.run.records
        ends = [trained.num_classes(record.step) for record in earlier]
        parts = [(*part, 1) for part in zip(earlier, [1, *ends[:-1]], ends, strict=True)]
        parts.append((last, 1, ends[-1], -1))
        presence = self._source.presence("val")
        counts = []
        for record, first, end, sign in parts:
            # Only images that hold one of the classes are predicted: on 15-1, most steps add a single class.
            numbers = set(trained.learning_order[first:end])
            names = tuple(name for name in self._source.ids("val") if presence[name] & numbers)
            counts.append(_CorrectPixels(record, names, first, end, sign))
        return counts

    def _check(self) -> None:
        # All steps at once: otherwise the weights of a late step would be missed after minutes of predicting.
        last = self.run.records[-1]
        if self._source.fingerprint != last.data.fingerprint:
            raise DataError(
                f"these are not the data of the run {last.run_key[:10]}: their fingerprint is "
                f"{self._source.fingerprint[:12]}, and the run was tested on {last.data.fingerprint[:12]} "
                f"({last.data.kind} data).",
                hint="Name the folder that it was trained on by --data-root.",
            )
        for record in self.run.records:
            if not self._steps.has(record.key):
                raise StoreError(
                    f"the weights of step {record.step} ({record.key[:10]}) are not in {self._steps.root}.",
                    hint=f"Name the folder that --steps-dir of the run named. {_LOST_WEIGHTS}",
                )

    def _test_maps(self) -> list[Maps]:
        """Return the companions of the test images. Raises DataError where they are not those of the run's test."""
        run, lists = self.run, ImageLists(self._source)
        maps = [lists.test_maps(one) for one in run.method.companions(run.trained) if one.at_test]
        if maps:
            found = {one.companion.name: one.fingerprint for one in maps}
            key = evaluation_key(run.setting, run.recipe, lists, run.method, found)
            for record in run.records:
                if self._steps.evaluation(record.key, key) is None:
                    raise DataError(
                        f"step {record.step} of the run {record.run_key[:10]} was not tested with these maps "
                        f"({', '.join(found)}), as far as {self._steps.root} knows.",
                        hint="Put the maps of its test back, or run it again: it is then tested with these.",
                    )
        return maps

    def _predictions(self, record: StepRecord, names: Sequence[str]) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """Yield name, image as it looks, uint8 (3, H, W), and uint8 target and prediction (H, W) of every image."""
        # Batch, view and precision are those of the run's own evaluation. With others, sums are rounded differently,
        # and an arg-max may differ from what was scored.
        recipe = self.run.recipe
        table, normalise = self.run.setting.test_table(), Normalisation(self.run.view().normalise, self._device)
        loader = EvalLoader(
            self._source, "val", names, table, self.run.view(), recipe.evaluation.batch, self._workers,
            companions=self._maps, device=self._device,
        )  # fmt: skip
        model = self._model(record)
        known, classes = self.run.trained.num_classes(record.step), len(self.run.trained.learning_order)
        predict = Prediction(self.run.method.scores, known, classes)
        with torch.inference_mode(), explaining_lost_workers():
            for batch in loader:
                found = predictions(model, batch, recipe.optim.precision, predict).to("cpu", torch.uint8)
                pixels, target = normalise.pixels(batch.images).cpu(), batch.target.to("cpu", torch.uint8)
                yield from zip(batch.ids, pixels, target, found, strict=True)

    def _model(self, record: StepRecord) -> IncrementalModel:
        """Build the model as it is after a step, with its published weights."""
        model = build_model(self.run.recipe.model, self.run.recipe.data.crop)
        for step in range(record.step + 1):
            model.grow(self.run.method.layout(self.run.trained, step))
        try:
            model.load_state_dict(self._steps.load(record.key))
        except DamagedStepError as error:
            raise StoreError(error.message, hint=_LOST_WEIGHTS) from error
        except RuntimeError as error:
            raise WeightsError(
                f"the weights of step {record.step} ({record.key[:10]}) do not fit {self.run.recipe.model} as this "
                "version builds it.",
                hint="Use the version of cispbench that trained them.",
            ) from error
        return to_device(model, self._device).eval()


def _numpy(tensor: Tensor) -> Pixels:
    pixels: Pixels = tensor.to(torch.uint8).contiguous().numpy()
    return pixels
