"""Every hook of a method on two processes gives what it gives on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cispbench.harness.distributed.group import joined
from cispbench.harness.distributed.launcher import start
from cispbench.harness.training.job import StoppedError
from cispbench.harness.training.loop import StepTraining
from cispbench.harness.training.services import StepServices
from tests.harness.training.toys import Loader, Toy, context, job

CPU = torch.device("cpu")


METHODS = {"toy": Toy}


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


def prototype_gradient(folder: str) -> None:
    """Write the gradient of a term over the whole batch, of which each process has a part, as DDP adds it up."""
    with joined(CPU) as group:
        data = torch.arange(12, dtype=torch.float64).view(6, 2).cos()
        part = data[:2] if group.first else data[2:]
        weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
        services = StepServices(job(Toy(), Path(folder) / "none.pt", group=group), Loader())  # type: ignore[arg-type]
        with services.iteration():
            total = services.batch_sum((part * weight).square().sum(0))
            term = (total / services.batch_sum(torch.tensor(len(part)))).square().sum()
        (term * len(part) / 6).backward()
        assert weight.grad is not None
        torch.save(group.sum(weight.grad), Path(folder) / f"{group.rank}.pt")


def test_a_sum_over_devices_has_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    start(2, prototype_gradient, {"folder": str(tmp_path)})
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    data = torch.arange(12, dtype=torch.float64).view(6, 2).cos()
    ((data * weight).square().sum(0) / 6).square().sum().backward()
    for path in tmp_path.glob("[01].pt"):
        torch.testing.assert_close(torch.load(path), weight.grad, rtol=1e-12, atol=0)
    assert len(list(tmp_path.glob("[01].pt"))) == 2
