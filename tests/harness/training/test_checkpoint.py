"""The file of a checkpoint: what it holds, so that later versions can read it, and how it is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cispbench.harness.machine.progress import ProgressView
from cispbench.harness.machine.seeds import seed_everything
from cispbench.harness.method import Batch, StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.fields import OptimRecipe, Precision
from cispbench.harness.training.job import StoppedError, TrainingJob, TrainingLog
from cispbench.harness.training.loop import StepTraining
from cispbench.methods.finetune import FineTune
from cispbench.splits.settings import parse_setting

CLASSES = 20


class FourBatches:
    """Stands in for the loader: four batches of two images; the second batch is NaN."""

    def __len__(self) -> int:
        return 4

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, 2, 3, 16, 16, generator=generator)
        images[1] = float("nan")
        targets = torch.randint(0, CLASSES, (4, 2, 16, 16), generator=generator)
        return (Batch(images[number], targets[number], ("a", "b")) for number in range(start, 4))


def training(checkpoint: Path, precision: Precision, stop_after: int = 0) -> StepTraining:
    seed_everything(0)
    model = build_model("segmenter-tiny", 16)
    model.grow(CLASSES)
    asked = iter(range(1, 100))
    job = TrainingJob(
        method=FineTune(), context=StepContext(parse_setting("overlapped-19-1"), 0, 0, CLASSES, model, None),
        loader=FourBatches(),  # type: ignore[arg-type]
        phase=OptimRecipe(lr=0.05, batch=2, iterations=8, precision=precision), device=torch.device("cpu"), seed=0,
        checkpoint=checkpoint, view=ProgressView(), images=8, stop=lambda: next(asked) == stop_after,
    )  # fmt: skip
    return StepTraining(job)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_checkpoint_holds_what_it_always_held_and_is_resumed(tmp_path: Path, precision: Precision) -> None:
    whole = training(tmp_path / "none.pt", precision)
    log = whole.run()
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(StoppedError):
        training(path, precision, stop_after=3).run()
    content: dict[str, Any] = torch.load(path, weights_only=True)
    assert content.keys() == {"iteration", "model", "stepper", "method", "log", "random", "random_of_others"}
    assert content["stepper"].keys() == {"optimizer", "scaler", "skipped"}
    assert content["log"].keys() == set(TrainingLog.__dataclass_fields__)
    assert content["random"].keys() == {"torch", "cuda", "numpy", "python"} and content["random_of_others"] == []
    # With fp16 the search for a scale may have skipped more.
    assert content["iteration"] == 3 and content["stepper"]["skipped"] >= 1

    resumed = training(path, precision)
    again = resumed.run()
    assert (again.resumed, again.skipped, again.images) == (True, log.skipped, 16)
    assert log.skipped == 2 or precision == "fp16"
    assert (again.iterations, again.terms) == (log.iterations, log.terms)
    ours, theirs = resumed.job.context.model.state_dict(), whole.job.context.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
