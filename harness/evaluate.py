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


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count pixels by (target, prediction): int64 (C, C), rows = target, on the device of the inputs.

    ``prediction`` and ``target`` are integer tensors of one shape; pixels whose target is ``ignore_index`` are left
    out. Raises ValueError for different shapes or a value outside 0..C-1.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    if not target.numel():
        return torch.zeros(num_classes, num_classes, dtype=torch.int64, device=target.device)
    kept = target != ignore_index
    void = prediction.masked_fill(~kept, 0), target.masked_fill(~kept, num_classes)
    for name, values, most in (("prediction", void[0], num_classes - 1), ("target", void[1], num_classes)):
        low, high = values.aminmax()
        if low < 0 or high > most:
            raise ValueError(f"{name}: a class is outside 0..{num_classes - 1}")
    return _pairs(*void, num_classes, num_classes + 1)


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
        return scores.argmax(1)


def evaluate(
    model: IncrementalModel,
    batches: Iterable[Batch],
    num_classes: int,
    device: torch.device,
    precision: str,
    progress: Callable[[int], None] | None = None,
    predict: Callable[[Output], Tensor] = lambda output: output.logits.argmax(1),
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
        with autocast(device, precision):
            output = model(*batch.inputs)
        total += _count(predict(output), batch.target, num_classes)
        done += len(batch.ids)
        if progress is not None:
            progress(done)
    return total


def _count(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count as ``confusion_matrix`` does, but without its checks, which would wait for the device."""
    return _pairs(prediction, target, num_classes, VOID + 1)


def _pairs(prediction: Tensor, target: Tensor, num_classes: int, rows: int) -> Tensor:
    """Count pairs of labels below ``rows`` and classes; rows from ``num_classes`` on are left out: int64 (C, C)."""
    # In 32 bits: counting 64-bit numbers takes six times as long.
    pairs = (target.int() * num_classes + prediction.int()).flatten()
    length = rows * num_classes
    counts = torch.bincount(pairs, minlength=length) if pairs.device.type == "cpu" else scattered_counts(pairs, length)
    return counts[: num_classes**2].view(num_classes, num_classes)


def scattered_counts(numbers: Tensor, length: int) -> Tensor:
    """Return how often each of the numbers 0 to ``length`` - 1 occurs, int64; there are no others.

    Unlike torch.bincount it does not read the largest one, for which a GPU would have to be waited for.
    """
    counts = torch.zeros(length, dtype=torch.int64, device=numbers.device)
    return counts.scatter_add_(0, numbers.long(), torch.ones_like(counts[:1]).expand_as(numbers))
