"""Every hook of a method on two processes gives what it gives on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cispbench.harness.distributed.group import joined
from cispbench.harness.distributed.launcher import start
from cispbench.harness.method import Batch, Output, StepContext
from cispbench.harness.training.job import StoppedError
from cispbench.harness.training.loop import StepTraining
from tests.harness.training.toys import Toy, context, job

CPU = torch.device("cpu")


class Prototype(Toy):
    """Its term needs the whole batch: the mean of the features of all its labelled patches, squared."""

    micro_batches = False

    def losses(self, batch: Batch, output: Output, previous: Any, context: StepContext) -> dict[str, Tensor]:
        self.note(f"losses {context.phase}")
        # Drawn alike on all devices: otherwise the sum would not be a multiple.
        weight = torch.rand(1, generator=context.generator)
        devices = context.batch_sum(torch.ones(1))
        assert torch.equal(context.batch_sum(weight), weight * devices)
        labelled = (batch.target != 255).float()
        share = labelled.mean((1, 2))[:, None, None]
        total = context.batch_sum((share * output.patches).sum((0, 1)))
        count = context.batch_sum(share.sum() * output.patches.shape[1])
        context.log("share", share.mean())
        return {"prototype": weight[0] * (total / count).square().sum() * 100}

    def counts(self, batch: Batch, previous: Any, context: StepContext) -> dict[str, Tensor | int]:
        return {}


METHODS = {"toy": Toy, "prototype": Prototype}


def train(name: str, folder: str, stop_after: int | None) -> None:
    """Train in one of two processes; each writes what it ends with."""
    asked = iter(range(1, 100))
    with joined(CPU) as group:
        method = METHODS[name]()
        stop = None if stop_after is None else lambda: next(asked) == stop_after
        made = job(method, Path(folder) / "checkpoint.pt", group=group, stop=stop)
        try:
            log = StepTraining(made).run()
        except StoppedError:
            return
        found = {"weights": made.context.model.state_dict(), "state": method.state_dict(), "calls": method.calls,
                 "terms": log.terms, "notes": log.notes, "generator": torch.rand(1)}  # fmt: skip
        torch.save(found, Path(folder) / f"{group.rank}.pt")


def on_two(name: str, folder: Path, stop_after: int | None = None) -> list[Any]:
    start(2, train, {"name": name, "folder": str(folder), "stop_after": stop_after})
    return [torch.load(path) for path in sorted(folder.glob("[01].pt"))]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stop_after", [None, 2, 3])
def test_two_processes_end_as_one_does_and_alike(tmp_path: Path, name: str, stop_after: int | None) -> None:
    """``stop_after``: stopped within the first phase, or between the two, and resumed."""
    method = METHODS[name]()
    alone = job(method, tmp_path / "alone.pt", context=context())
    log = StepTraining(alone).run()
    if stop_after is not None:
        assert on_two(name, tmp_path, stop_after) == []
    first, second = on_two(name, tmp_path)
    for key, tensor in first["weights"].items():
        assert torch.equal(second["weights"][key], tensor)
        torch.testing.assert_close(tensor, alone.context.model.state_dict()[key], rtol=1e-3, atol=1e-5)
    for key, tensor in first["state"].items():
        assert torch.equal(second["state"][key], tensor)
        torch.testing.assert_close(tensor, method.state_dict()[key], rtol=1e-4, atol=1e-6)
    for kind, values in (("terms", log.terms), ("notes", log.notes)):
        assert first[kind].keys() == values.keys()
        for term, numbers in values.items():
            known = [number for number in numbers if number is not None]
            assert [number for number in first[kind][term] if number is not None] == pytest.approx(known, rel=1e-4)
    hooks = [call for call in second["calls"] if not call.startswith("losses")]
    assert hooks == [] and "after train done" in first["calls"]
    assert ("initialise" in first["calls"]) == (stop_after is None)
