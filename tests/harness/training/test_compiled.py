"""``--compile``: the numbers stay but for rounding, names stay, and what cannot be compiled is trained as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cispbench.harness.machine.acceleration import NONE, Acceleration
from cispbench.harness.training import compiled
from cispbench.harness.training.compiled import CompiledNetworks
from cispbench.harness.training.job import StoppedError
from cispbench.harness.training.loop import StepTraining
from cispbench.harness.training.optimisation import Stepper
from cispbench.results.record_fields import Execution
from cispbench.splits.errors import RunError
from cispbench.splits.strict_fields import read_fields
from tests.harness.training.toys import Toy, context, job

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def graphs(monkeypatch: pytest.MonkeyPatch, *, broken: bool = False) -> list[Any]:
    """Let torch trace what it would compile, and run the graphs as they are; returns them."""
    seen: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        if broken:
            raise RuntimeError("no compiler here\nand more")
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", backend)
    return seen


@pytest.mark.parametrize("name", ["segmenter-tiny", "deeplabv3-tiny"])
def test_a_compiled_step_has_the_numbers_of_a_plain_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    traced = graphs(monkeypatch)
    for chosen in (False, True):
        there = context(name)
        log = StepTraining(
            job(SimpleToy(), tmp_path / f"{chosen}", context=there, acceleration=Acceleration(compile=chosen))
        ).run()
        assert log.compiled is chosen and bool(traced) is chosen
        assert there.model._compiled_call_impl is None
        ends.append({key: tensor.clone() for key, tensor in there.model.state_dict().items()})
    assert ends[0].keys() == ends[1].keys()
    for key, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][key], tensor, rtol=1e-3, atol=1e-4)


class SimpleToy(Toy):
    """A toy for both networks."""

    def after_gradients(self, gradients, context):  # type: ignore[no-untyped-def]
        self._count(2)


def test_what_cannot_be_compiled_is_trained_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: Any
) -> None:
    graphs(monkeypatch, broken=True)
    said = commands.succeed(commands.tiny("--compile", "--quiet", method="finetune", iterations=(2, 1))).stderr
    assert "the network cannot be compiled, and is trained as it is (--compile): " in said
    assert "no compiler here" in said and all(len(line) < 300 for line in said.splitlines())
    first = json.loads(commands.records()[0].read_text())
    assert first["execution"] == {
        "devices": 1, "micro_batch": None, "compile": False, "tf32": False, "cudnn_benchmark": False,
    }  # fmt: skip


def test_what_is_switched_on_is_recorded_and_enters_no_key(monkeypatch: pytest.MonkeyPatch, commands: Any) -> None:
    graphs(monkeypatch)
    words, keys = commands.tiny(method="finetune", iterations=(2, 1)), []
    for place, more in (("plain", []), ("fast", ["--compile", "--tf32", "--cudnn-benchmark"])):
        commands.out, commands.steps = commands.home / f"out {place}", commands.home / f"steps {place}"
        commands.succeed([*words[: -len(commands.places())], *commands.places(), *more])
        record = json.loads(commands.records()[0].read_text())
        assert [record["execution"][name] for name in ("compile", "tf32", "cudnn_benchmark")] == [bool(more)] * 3
        keys.append(record["key"])
    assert keys[0] == keys[1]
    assert not torch.backends.cudnn.benchmark and torch.get_float32_matmul_precision() == "highest"


class Broken(nn.Module):
    """A batch norm and random numbers, before a break of the graph after which nothing compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x) + torch.rand(3)
        torch._dynamo.graph_break()
        return x * 2.0


@torch.no_grad()
def test_a_call_that_fails_half_way_leaves_nothing_of_its_first_half(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        if len(seen) == 2:
            raise RuntimeError("the second half")
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", backend)
    network, plain, told, x = Broken(), Broken(), [], torch.randn(4, 3)
    networks = CompiledNetworks([network], told.append, CPU)
    torch.manual_seed(7)
    found, drawn = networks.call(network, x), torch.rand(1)
    assert len(seen) == 2 and len(told) == 1 and not networks.compiled
    torch.manual_seed(7)
    assert torch.equal(found, plain(x)) and torch.equal(drawn, torch.rand(1))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


class Fails(SimpleToy):
    """An error of the method itself."""

    def losses(self, *args: Any) -> Any:
        raise ValueError("of the method")


def test_networks_are_as_they_were_after_a_training_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs(monkeypatch)
    there = context()
    with pytest.raises(ValueError, match="of the method"):
        StepTraining(job(Fails(), tmp_path / "c", context=there, acceleration=Acceleration(compile=True))).run()
    assert there.previous is not None
    assert there.model._compiled_call_impl is None and there.previous._compiled_call_impl is None


def test_a_backward_pass_that_cannot_be_compiled_ends_the_training_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs(monkeypatch)

    def backward(self: Stepper, loss: torch.Tensor) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no kernel for it")

    monkeypatch.setattr(Stepper, "backward", backward)
    with pytest.raises(RunError, match=r"backward pass cannot be compiled .*no kernel for it") as caught:
        StepTraining(job(SimpleToy(), tmp_path / "c", acceleration=Acceleration(compile=True))).run()
    assert "Leave --compile out" in str(caught.value.hint)
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):  # without it, an error is left as it is
        StepTraining(job(SimpleToy(), tmp_path / "d")).run()


ALL = Acceleration(compile=True, tf32=True, cudnn_benchmark=True)


@pytest.mark.parametrize(("first", "second"), [(ALL, NONE), (NONE, ALL), (NONE, NONE)])
def test_a_resumed_step_has_used_what_any_part_of_it_has(
    first: Acceleration, second: Acceleration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs(monkeypatch)
    asked = iter(range(1, 9))
    with pytest.raises(StoppedError):
        StepTraining(job(SimpleToy(), tmp_path / "c", acceleration=first, stop=lambda: next(asked) == 2)).run()
    log = StepTraining(job(SimpleToy(), tmp_path / "c", acceleration=second)).run()
    assert log.resumed
    assert {log.compiled, log.tf32, log.cudnn_benchmark} == {ALL in (first, second)}


def test_an_error_of_the_network_is_not_taken_for_one_of_the_compiler() -> None:
    class Faulty(nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            raise ValueError("of the network")

    network, told = Faulty(), []
    networks = CompiledNetworks([], told.append, CPU)
    with pytest.raises(ValueError, match="of the network"):
        networks.call(network, torch.ones(1))
    assert not told


def test_records_of_before_say_that_nothing_was_switched_on() -> None:
    assert read_fields(Execution, {"devices": 2, "micro_batch": None}, "a record") == Execution(2, None)


def test_what_holds_for_the_process_is_set_back() -> None:
    with NONE.in_force():
        assert not torch.backends.cudnn.benchmark
    with Acceleration(tf32=True, cudnn_benchmark=True).in_force():
        assert torch.backends.cudnn.benchmark and torch.get_float32_matmul_precision() == "high"
    assert not torch.backends.cudnn.benchmark and torch.get_float32_matmul_precision() == "highest"
