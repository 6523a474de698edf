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
from cispbench.harness.training.loop import StepTraining
from cispbench.results.record_fields import Execution
from cispbench.splits.strict_fields import read_fields
from tests.harness.training.toys import Toy, context, job

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
        log = StepTraining(job(SimpleToy(), tmp_path / f"{chosen}", context=there, compile=chosen)).run()
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


def test_an_error_of_the_network_is_not_taken_for_one_of_the_compiler() -> None:
    class Broken(nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            raise ValueError("of the network")

    network, told = Broken(), []
    networks = CompiledNetworks([], told.append)
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
