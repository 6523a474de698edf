"""What an iteration that is not finite has done to a method's state is taken back; on a GPU nothing is read for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cispbench.harness.contract.gpu_waits import GPU
from cispbench.harness.contract.imitated_gpu import ImitatedGpu
from cispbench.harness.method import Batch, Output, StepContext
from cispbench.harness.training.loop import StepTraining
from cispbench.harness.training.state import StateBefore
from tests.harness.training.toys import Toy, job

MEAN = torch.tensor([1.0, 2.0])
YES, NO = torch.tensor(True), torch.tensor(False)
# As a method may write to its state, all but the first without leaving a trace on the tensor.
WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda mean: mean.fill_(math.nan),
    "by .data": lambda mean: mean.data.fill_(math.nan),
    "by NumPy": lambda mean: mean.numpy().fill(math.nan),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_any_write_is_taken_back_and_only_if_the_iteration_is_not_finite(write: Callable[[Tensor], object]) -> None:
    mean = MEAN.clone()
    before = StateBefore({"mean": mean})
    write(mean)
    assert before.taken_back({"mean": mean}, YES) is None
    found = before.taken_back({"mean": mean}, NO)
    assert found is not None and found.keys() == {"mean"} and torch.equal(found["mean"], MEAN)


def test_what_is_new_goes_and_what_is_gone_comes_back() -> None:
    before = StateBefore({"mean": MEAN})
    found = before.taken_back({"count": torch.ones(1)}, NO)
    assert found is not None and found.keys() == {"mean"} and torch.equal(found["mean"], MEAN)


class Elsewhere:
    """A bool that says that it lies on another device, and must not be read."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.device = value, torch.device("meta")

    def __bool__(self) -> bool:
        raise AssertionError("it was read")


@pytest.mark.parametrize(("finite", "expected"), [(True, 3.0), (False, 1.0)])
def test_on_a_device_one_of_both_is_chosen_there(
    finite: bool, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean = torch.tensor([1.0, math.nan])
    before = StateBefore({"mean": mean})
    mean.copy_(torch.tensor([3.0, 3.0]))
    right = torch.where
    monkeypatch.setattr(torch, "where", lambda chosen, now, copy: right(chosen.value, now, copy))
    monkeypatch.setattr(StateBefore, "_is_like", lambda *_: True)
    found = before.taken_back({"mean": mean}, Elsewhere(torch.tensor(finite)))  # type: ignore[arg-type]
    assert found is not None and float(found["mean"][0]) == expected


def test_a_gpu_does_not_wait_for_it() -> None:
    gpu = ImitatedGpu()
    with gpu.watch() as seen:
        mean, finite = gpu.put(MEAN), gpu.put(YES)
        before = StateBefore({"mean": mean})
        mean.add_(1)
        found = before.taken_back({"mean": mean}, finite)
        assert not seen and found is not None and found["mean"].device == GPU
        # A state of other shapes cannot be chosen from value by value: there the answer is read.
        before.taken_back({"mean": mean, "more": mean}, finite)
        assert [one.kind for one in seen] == ["read"]


class Averages(Toy):
    """Keeps a mean that ``losses`` writes to; it is NaN in one iteration, as its loss is."""

    micro_batches = False

    def __init__(self, write: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.write, self.mean, self.called, self.spoilt = write, torch.zeros(1), 0, -1

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        self.called += 1
        self.mean.data.add_(1.0)
        terms = super().losses(batch, output, previous, context)
        if self.called == self.spoilt:
            self.write(self.mean)
            terms["cross_entropy"] = terms["cross_entropy"] * math.nan
        return terms

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.mean = state["mean"].clone()


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_training_goes_on_with_the_state_of_before(write: Callable[[Tensor], object], tmp_path: Path) -> None:
    method = Averages(write)
    method.spoilt = 2
    log = StepTraining(job(method, tmp_path / "checkpoint")).run()
    assert (log.skipped, method.called) == (1, 6)
    assert method.mean.tolist() == [5.0]  # of six iterations one has left no trace
