"""Sums over the whole batch (``batch_sum``) and common draws (``generator``) in ``losses``: on two processes as on one.

In double precision, where rounding leaves nothing to doubt: a factor that is wrong shows in the first gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cispbench.harness.cross_entropy import labelled_pixels
from cispbench.harness.distributed.division import Division
from cispbench.harness.distributed.group import joined
from cispbench.harness.distributed.launcher import start
from cispbench.harness.method import Batch, Output, StepContext
from cispbench.harness.training.job import StoppedError
from cispbench.harness.training.loop import StepTraining
from cispbench.splits.errors import MethodError
from cispbench.splits.settings import VOID
from tests.harness.training.toys import NEW, OLD, RECIPE, Loader, Toy, context, job

CPU = torch.device("cpu")
CLASSES = OLD + NEW


class Three(Loader):
    """Batches of three images: two processes have unequal shares."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in Loader().epoch(epoch, start):
            yield self._share(batch.part(slice(3)))

    def share(self, division: Division, rank: int) -> Three:
        return Three(division, rank)


class Whole(Toy):
    """Learns mean probabilities of the classes' pixels in the whole batch, each weighted by a number that is drawn."""

    micro_batches = False

    def __init__(self) -> None:
        super().__init__()
        self.gradients: dict[int, dict[str, Tensor]] = {}  # of each iteration, from 0

    def prepare(self, batch: Batch, context: StepContext) -> Batch:
        return replace(batch, images=batch.images.double())

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        shown = functional.one_hot(batch.target.clamp(max=CLASSES - 1), CLASSES).permute(0, 3, 1, 2)
        shown = shown.double() * (batch.target < CLASSES)[:, None]
        found = (output.logits.softmax(1) * shown).sum((0, 2, 3)), shown.sum((0, 2, 3))
        sums, pixels = map(context.batch_sum, found)
        drawn = torch.rand(CLASSES, generator=context.generator, dtype=torch.float64)
        missed = (drawn * (1 - sums / pixels.clamp(min=1)).square()).sum()
        # The sum and what a device sees alone, in one term.
        mixed = ((sums / sums.sum()) * output.logits.mean((0, 2, 3))).sum()
        # Not the methods' own, which is computed in single precision.
        known = functional.cross_entropy(output.logits, batch.target, ignore_index=VOID)
        return {"cross_entropy": known, "missed": missed, "mixed": mixed}

    def counts(self, batch: Batch, previous: Any, context: StepContext) -> dict[str, Tensor | int]:
        return {"cross_entropy": labelled_pixels(batch.target)}

    def after_gradients(self, gradients: Mapping[str, Tensor], context: StepContext) -> None:
        done = int(self.seen[2])
        self.gradients[done] = {name: gradient.clone() for name, gradient in gradients.items()}
        self._count(2)


class ByShare(Whole):
    """Draws a number for each image of its share."""

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        drawn = torch.rand(len(batch.ids), generator=context.generator)
        return {"drawn": drawn.mean() * output.logits.square().mean(), "reached": output.logits.mean()}

    def counts(self, batch: Batch, previous: Any, context: StepContext) -> dict[str, Tensor | int]:
        return {}


def made(method: Toy, checkpoint: Path, **changes: Any) -> StepTraining:
    given, recipe = context(), replace(RECIPE, batch=3)
    assert given.previous is not None
    given.model.double()
    given.previous.double()
    phases = {"pretune": recipe, "train": recipe}
    return StepTraining(job(method, checkpoint, context=given, phases=phases, loader=lambda name: Three(), **changes))


def train(folder: str, stop_after: int | None) -> None:
    """Train in one of two processes, from its checkpoint if there is one; write what it ends with."""
    asked = iter(range(1, 100))
    stop = None if stop_after is None else lambda: next(asked) == stop_after
    with joined(CPU) as group:
        method = Whole()
        training = made(method, Path(folder) / "of two.pt", group=group, stop=stop)
        try:
            training.run()
        except StoppedError:
            return
        found = {"gradients": method.gradients, "weights": training.job.context.model.state_dict()}
        torch.save(found, Path(folder) / f"{group.rank}.pt")


@pytest.mark.parametrize("stop_after", [None, 2])
def test_sums_and_draws_on_two_processes_are_those_of_one(tmp_path: Path, stop_after: int | None) -> None:
    method = Whole()
    alone = made(method, tmp_path / "alone.pt")
    alone.run()
    if stop_after is not None:
        start(2, train, {"folder": str(tmp_path), "stop_after": stop_after})
        assert not list(tmp_path.glob("[01].pt")) and (tmp_path / "of two.pt").exists()
    start(2, train, {"folder": str(tmp_path), "stop_after": None})
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert sorted(first["gradients"]) == list(range(stop_after or 0, 6)) and sorted(method.gradients) == list(range(6))
    for number, gradients in first["gradients"].items():
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, method.gradients[number][name], rtol=1e-9, atol=1e-12)
    for name, tensor in alone.job.context.model.state_dict().items():
        assert torch.equal(second["weights"][name], first["weights"][name])
        torch.testing.assert_close(first["weights"][name], tensor, rtol=1e-9, atol=1e-12)


def refuse(folder: str) -> None:
    """Train on shares of one image and of two."""
    with joined(CPU) as group:
        with pytest.raises(MethodError, match=r"drawn other numbers from context.generator on one device") as error:
            made(ByShare(), Path(folder) / "none.pt", group=group).run()
        assert error.value.hint is not None and "Draw as many of them" in error.value.hint
        (Path(folder) / f"{group.rank}.txt").touch()


def test_devices_that_draw_different_numbers_are_told(tmp_path: Path) -> None:
    start(2, refuse, {"folder": str(tmp_path)})
    assert len(list(tmp_path.glob("[01].txt"))) == 2


def test_a_sum_over_the_batch_is_refused_where_a_part_of_it_is_seen_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"sums over the batch \(context.batch_sum\), and is given one of 3") as error:
        made(Whole(), tmp_path / "none.pt", micro_batch=1).run()
    assert error.value.hint == "Set micro_batches = False in its class: --micro-batch is then refused."
