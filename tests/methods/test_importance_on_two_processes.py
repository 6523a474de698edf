"""EWC, PI and RW on two processes train and measure what they do on one.

In float64: in float32 one rounding is enough to part two trainings. On ``deeplabv3-tiny`` with 20 iterations of step 1,
EWC with an importance of 50, the loss of two processes is off by 1e-7 in the first five iterations and by 5e-4 at the
end. That of one process whose weights are changed by one rounding at the start is off by as much, at the same
iterations, and so is fine-tuning's. In float64 the states of one and two processes agree to 1e-13 after 20 iterations:
nothing but rounding parts them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cispbench.harness.distributed.division import Division
from cispbench.harness.distributed.group import ALONE, Group, joined
from cispbench.harness.distributed.launcher import start
from cispbench.harness.machine.seeds import seed_everything
from cispbench.harness.method import Batch, StepContext
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.harness.registry import load_method
from cispbench.harness.training.loop import StepTraining
from tests.harness.training.toys import NEW, OLD, SETTING, Loader, job

OPTIONS = {"ewc": {"importance": 50.0}, "pi": {"importance": 50.0}, "rw": {"importance": 50.0, "interval": 2}}
RECIPE = OptimRecipe(lr=0.003, batch=4, iterations=5)
CPU = torch.device("cpu")


class Doubles(Loader):
    """The toys' images in float64, with the classes below ``classes`` alone, twice as large."""

    def __init__(self, classes: int, division: Division | None = None, rank: int = 0) -> None:
        super().__init__(division, rank)
        self.classes = classes

    def share(self, division: Division, rank: int) -> Doubles:
        return Doubles(self.classes, division, rank)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(epoch, start):
            images, target = (x.repeat_interleave(2, -1).repeat_interleave(2, -2) for x in (batch.images, batch.target))
            target[(target >= self.classes) & (target != 255)] = 0
            yield Batch(images.double(), target, batch.ids)


def train(name: str, folder: Path, before: dict[str, Any] | None = None, group: Group = ALONE) -> dict[str, Any]:
    """Train step 0, or step 1 from what step 0 ended with; return what is there at the end."""
    method = load_method(name)(load_method(name).Options(**OPTIONS[name]))
    seed_everything(0)
    model, previous = build_model("deeplabv3-tiny", 32), None
    model.grow(OLD)
    if before is not None:
        model.load_state_dict(before["weights"])
        method.load_state_dict(before["state"])
        previous = copy.deepcopy(model).double().eval().requires_grad_(False)
        model.grow(NEW)
    model.double()
    old, new = (0, OLD) if before is None else (OLD, NEW)
    context = StepContext(SETTING, int(before is not None), old, new, model, previous)
    made = job(
        method, folder / f"checkpoint-{group.size}-{old}.pt", context=context, phases={"train": RECIPE}, group=group,
        loader=lambda name: Doubles(old + new),
    )  # fmt: skip
    log = StepTraining(made).run()
    ends = {"weights": model.state_dict(), "state": method.state_dict(), "terms": log.terms, "notes": log.notes}
    return copy.deepcopy(ends)


def train_two(folder: str) -> None:
    """Train step 1 of each method as one of two processes, which are started once for all."""
    with joined(CPU) as group:
        for name in OPTIONS:
            place = Path(folder, name)
            torch.save(train(name, place, torch.load(place / "before.pt"), group), place / f"{group.rank}.pt")


def test_two_processes_train_and_measure_as_one(tmp_path: Path) -> None:
    alone = {}
    for name in OPTIONS:
        (tmp_path / name).mkdir()
        before = train(name, tmp_path / name)
        torch.save(before, tmp_path / name / "before.pt")
        alone[name] = train(name, tmp_path / name, before)
    start(2, train_two, {"folder": str(tmp_path)})
    for name, expected in alone.items():
        check(expected, *(torch.load(tmp_path / name / f"{rank}.pt") for rank in range(2)))


def check(alone: dict[str, Any], first: dict[str, Any], second: dict[str, Any]) -> None:
    for kind in ("weights", "state"):
        assert first[kind].keys() == alone[kind].keys() and first[kind]
        for key, expected in alone[kind].items():
            torch.testing.assert_close(first[kind][key], expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))
    for key, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][key])
    for kind, term in (("terms", "cross_entropy"), ("notes", "penalty")):
        assert first[kind][term] == pytest.approx(alone[kind][term], rel=1e-6)
    assert alone["notes"]["penalty"][-1] > 1e-6
