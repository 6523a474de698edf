"""What processes share: batch norms, and how one knows that it is one of several."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

from cispbench.harness.data.synthetic import SyntheticSource
from cispbench.harness.distributed import group as group_module
from cispbench.harness.distributed.batch_norm import SharedBatchNorm, synchronise
from cispbench.harness.distributed.group import ALONE, Group, LostProcessError, joined, launched
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.recipes.layers import load_recipe
from cispbench.harness.runs.plan import plan_run
from cispbench.methods.finetune import FineTune
from cispbench.splits.errors import UsageError
from cispbench.splits.settings import parse_setting

CPU = torch.device("cpu")


@pytest.fixture
def world_of_one() -> Iterator[None]:
    """A process group in this process alone: its sums are what they are sums of."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_shared_batch_norm_is_torch_s_own_in_values_gradients_and_statistics(
    world_of_one: None, momentum: float | None
) -> None:
    torch.manual_seed(0)
    own, images = nn.BatchNorm2d(3, momentum=momentum), torch.randn(2, 4, 3, 5, 6) * 3 + 7
    nn.init.normal_(own.weight)
    nn.init.normal_(own.bias)
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum))
    model.load_state_dict({f"0.{name}": tensor for name, tensor in own.state_dict().items()})
    parameters = dict(model.named_parameters())
    synchronise(model, Group(0, 2), CPU)
    shared = model[0]
    assert isinstance(shared, SharedBatchNorm) and shared.weight is parameters["0.weight"]
    for batch in images:
        pair = [batch.clone().requires_grad_() for _ in range(2)]
        results = [norm(x) for norm, x in zip((own, shared), pair, strict=True)]
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
        for result in results:
            (result * torch.arange(6.0)).square().sum().backward()
        torch.testing.assert_close(pair[1].grad, pair[0].grad, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(shared.weight.grad, own.weight.grad, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(shared.bias.grad, own.bias.grad, rtol=1e-5, atol=1e-3)
    assert shared.state_dict().keys() == own.state_dict().keys()
    for name, tensor in own.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shared.eval()(images[0]), own.eval()(images[0]))


@pytest.mark.parametrize(("device", "kind"), [("cpu", SharedBatchNorm), ("cuda", nn.SyncBatchNorm)])
@pytest.mark.parametrize("frozen", [False, True])
def test_every_batch_norm_of_a_model_is_shared_unless_it_is_frozen(
    device: str, kind: type[nn.Module], frozen: bool
) -> None:
    model = build_model("deeplabv3-tiny", 32)
    model.freeze_batch_norm = frozen
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    synchronise(model, ALONE, torch.device(device))
    assert not any(isinstance(module, kind) for module in model.modules())
    synchronise(model, Group(1, 2), torch.device(device))
    model.train()
    norms = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    assert len(norms) > 3 and all(isinstance(norm, kind) for norm in norms.values())
    assert all(norm.training != (frozen and name.startswith("encoder.")) for name, norm in norms.items())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def keys(model: str, frozen: bool, devices: int, micro_batch: int | None) -> list[str]:
    setting = parse_setting("overlapped-15-5")
    recipe = load_recipe(FineTune, setting, "quick", model, ["optim.batch=8", "data.crop=32"])
    plan = plan_run(
        setting=setting, method=FineTune(), recipe=replace(recipe, freeze_batch_norm=frozen), profile="quick", seed=0,
        source=SyntheticSource("voc", train=40, val=4, size=24), devices=devices,
        micro_batch=micro_batch,
    )  # fmt: skip
    return [step.key for step in plan.steps]


@pytest.mark.parametrize(
    ("model", "frozen", "sees_parts"),
    [
        ("segmenter-tiny", False, False),
        ("segmenter-mobilenetv2", True, False),
        ("segmenter-mobilenetv2", False, True),
        ("deeplabv3-tiny", True, True),  # the head's are never frozen
    ],
)
def test_parts_make_another_step_exactly_where_batch_norms_see_them(model: str, frozen: bool, sees_parts: bool) -> None:
    whole = keys(model, frozen, 1, None)
    assert keys(model, frozen, 2, None) == keys(model, frozen, 2, 4) == keys(model, frozen, 1, 8) == whole
    halves = keys(model, frozen, 1, 4)
    assert halves == keys(model, frozen, 2, 2)
    assert (set(halves) & set(whole) == set()) if sees_parts else (halves == whole)
    assert sees_parts == (keys(model, frozen, 1, 2) != halves)


def test_a_process_is_one_of_several_where_a_launcher_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not launched()
    monkeypatch.setenv("RANK", "0")
    assert not launched()
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun with a single process
    assert not launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched()


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "'first'"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "'two'"),
    ],
)
def test_a_launcher_that_leaves_out_how_to_meet_is_told(
    commands: Any, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], names: str
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    commands.refused(2, commands.tiny("--device", "cpu"), "RANK is set", names, "unset RANK and WORLD_SIZE")
    assert not commands.out.exists() and not commands.steps.exists()
    with pytest.raises(UsageError), joined(CPU):
        pass


@pytest.fixture
def one_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], str]:
    """What makes this process one of several, and returns where they meet: a port that was free."""

    def among(rank: int, size: int) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        variables = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(group_module, "START_TIMEOUT", timedelta(seconds=1))
        monkeypatch.setattr(group_module, "NOTICE_SECONDS", 0.1)
        return f"127.0.0.1:{port}"

    return among


@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_for_the_others_says_so_and_gives_up(
    one_of: Callable[[int, int], str], capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    place = one_of(rank, 2)
    with pytest.raises(LostProcessError, match=f"process {rank} of 2 has not met the others at {place}"), joined(CPU):
        pass
    assert f"process {rank} of 2 waits for the others at {place}\n" in capsys.readouterr().err
    assert not dist.is_initialized()


def test_a_port_in_use_is_named(one_of: Callable[[int, int], str]) -> None:
    place = one_of(0, 2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(place.rpartition(":")[2])))
        other.listen()
        with pytest.raises(LostProcessError, match=r"in 0 s: .*in use.*MASTER_PORT"), joined(CPU):
            pass


def test_who_has_met_only_some_is_told_as_well(one_of: Callable[[int, int], str]) -> None:
    place = one_of(1, 3)
    host, _, port = place.rpartition(":")
    script = f"""
from datetime import timedelta
from torch.distributed import TCPStore
try:
    TCPStore({host!r}, {port}, 3, True, timeout=timedelta(seconds=8))
except RuntimeError:
    pass
"""
    first = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        with pytest.raises(LostProcessError, match="process 1 of 3 has not met the others"), joined(CPU):
            pass
    finally:
        first.kill()
        first.wait()
