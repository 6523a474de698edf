"""Count test pixels: the confusion matrix of a model over all classes of the data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cispbench.harness.machine.devices import autocast
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.models.output import Output
from cispbench.harness.step import Batch
from cispbench.splits.errors import MethodError
from cispbench.splits.settings import VOID

PIECE = 2**17  # pixels that are counted at once
MAPPED_BYTES = 24 * 1024**2  # glibc maps larger pieces of memory anew each time, which costs more than filling them


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count pixels by (target, prediction): int64 (C, C), rows = target, on the device of the inputs.

    ``prediction`` and ``target`` are integer tensors of one shape; pixels whose target is ``ignore_index`` are left
    out. Raises ValueError for different shapes or a value outside 0..C-1.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    if not target.numel():
        return torch.zeros(num_classes, num_classes, dtype=torch.int64, device=target.device)
    rows = max(num_classes, ignore_index + 1) if ignore_index <= VOID else num_classes
    # All at once, void included, for masking takes longer than counting: what is odd is looked at again below.
    if not _within(prediction, num_classes) or not _within(target, rows):
        kept = target != ignore_index
        prediction, target = prediction[kept], target[kept]
        for name, values in (("prediction", prediction), ("target", target)):
            if values.numel() and not _within(values, num_classes):
                raise ValueError(f"{name}: a class is outside 0..{num_classes - 1}")
    counts = _pair_counts(prediction, target, num_classes, rows)
    if 0 <= ignore_index < rows:
        counts[ignore_index] = 0
    if counts[num_classes:].any():
        raise ValueError(f"target: a class is outside 0..{num_classes - 1}")
    return counts[:num_classes]


def _within(values: Tensor, count: int) -> bool:
    low, high = values.aminmax()
    return bool(low >= 0) and bool(high < count)


@dataclass(frozen=True)
class Prediction:
    """The class of each pixel by ``scores`` (``Method.scores``), for a network that knows ``known`` of ``classes``."""

    scores: Callable[[Output], Tensor]
    known: int
    classes: int

    def __call__(self, output: Output) -> Tensor:
        """Return int64 (B, H, W). Raises MethodError for scores that are not (B, K, H, W), K from known to classes."""
        scores = self.scores(output)
        batch, _, height, width = output.logits.shape
        right = scores.dim() == 4 and (len(scores), *scores.shape[2:]) == (batch, height, width)
        if not right or not self.known <= scores.shape[1] <= self.classes:
            raise MethodError(
                f"the scores of the method have the shape {tuple(scores.shape)}, for {batch} images of {height} x "
                f"{width} pixels, {self.known} classes known so far and {self.classes} of the setting.",
                hint="Let `scores` return (B, K, H, W), K at least the classes known so far.",
            )
        return arg_max(scores)


def arg_max(scores: Tensor) -> Tensor:
    """Return the channel of the highest score, the first of equal ones: int64 (B, H, W), from (B, K, H, W)."""
    # A pixel's scores side by side, and max, not argmax: together four times as fast on a CPU.
    return scores.movedim(1, -1).contiguous().max(-1).indices


def evaluate(
    model: IncrementalModel,
    batches: Iterable[Batch],
    num_classes: int,
    device: torch.device,
    precision: str,
    progress: Callable[[int], None] | None = None,
    predict: Callable[[Output], Tensor] = lambda output: arg_max(output.logits),
) -> Tensor:
    """Return the confusion matrix, int64 (C, C) on the CPU, of a model over test batches.

    The targets of ``batches`` hold indices over all ``num_classes`` classes of the data set. ``predict``: what makes
    class indices (b, H, W) of an output. ``progress`` is called with the number of images done. Counts are integers, so
    the size of batches has no effect but through the network's rounding.
    """
    return count_on_device(model, batches, num_classes, device, precision, progress, predict).cpu()


@torch.inference_mode()
def count_on_device(
    model: IncrementalModel,
    batches: Iterable[Batch],
    num_classes: int,
    device: torch.device,
    precision: str,
    progress: Callable[[int], None] | None,
    predict: Callable[[Output], Tensor],
) -> Tensor:
    """Do what ``evaluate`` does, and leave the counts where they are: nothing here waits for the device."""
    model.eval()
    total = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    done = 0
    for loaded in batches:
        batch = loaded.to(device)
        total += _count(predictions(model, batch, precision, predict), batch.target, num_classes)
        done += len(batch.ids)
        if progress is not None:
            progress(done)
    return total


def predictions(model: IncrementalModel, batch: Batch, precision: str, predict: Callable[[Output], Tensor]) -> Tensor:
    """Return what ``predict`` makes of a network's outputs for a batch, int64 (B, H, W)."""
    device, size = batch.images.device, len(batch.ids)
    # Logits that a CPU's allocator would map anew for each batch are made of fewer images at a time: the trunk sees the
    # batch, the rest a part of it. A network with a `forward` of its own cannot be taken apart like this.
    if device.type == "cpu" and type(model).forward is IncrementalModel.forward:
        logits = 4 * sum(group.channels for group in model.groups) * batch.target[0].numel()
        size = max(1, MAPPED_BYTES // logits)
    if size >= len(batch.ids):
        with autocast(device, precision):
            output = model(*batch.inputs)
        return predict(output)
    with autocast(device, precision):
        features = model.features(batch.images)
    found = []
    for start in range(0, len(batch.ids), size):
        part = slice(start, start + size)
        with autocast(device, precision):
            output = model.from_features(features.part(part), batch.part(part).companions or None)
        found.append(predict(output))
    return torch.cat(found)


def _count(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count as ``confusion_matrix`` does, but without its checks, which would wait for the device."""
    return _pair_counts(prediction, target, num_classes, VOID + 1)[:num_classes]


def _pair_counts(prediction: Tensor, target: Tensor, num_classes: int, rows: int) -> Tensor:
    """Count pairs of a label below ``rows`` and a class: int64 (rows, C)."""
    bins = rows * num_classes
    counts = torch.zeros(bins, dtype=torch.int64, device=target.device)
    if target.device.type != "cpu":
        pairs = torch.add(prediction.int(), target.int(), alpha=num_classes)
        return scattered_counts(pairs.flatten(), bins).view(rows, num_classes)
    # In pieces that a CPU's cache holds, and in 32 bits: 64 take longer, and 8 cannot hold a pair.
    pieces = (torch.split(labels.flatten(), PIECE) for labels in (prediction, target))
    for found, label in zip(*pieces, strict=True):
        counts += torch.bincount(torch.add(found.int(), label.int(), alpha=num_classes), minlength=bins)
    return counts.view(rows, num_classes)


def scattered_counts(numbers: Tensor, length: int) -> Tensor:
    """Return how often each of the numbers 0 to ``length`` - 1 occurs, int64; there are no others.

    Unlike torch.bincount it does not read the largest one, for which a GPU would have to be waited for.
    """
    counts = torch.zeros(length, dtype=torch.int64, device=numbers.device)
    return counts.scatter_add_(0, numbers.long(), torch.ones_like(counts[:1]).expand_as(numbers))
