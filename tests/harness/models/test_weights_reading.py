"""Reading files of weights without trusting them, and loading them into the network they belong to."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import mobilenet_v2, resnet18, resnet34, resnet50

from cispbench.harness.models.weight_files import likely_architecture, load_backbone, read_state
from cispbench.splits.errors import WeightsError


class Evil:
    """What a pickle can do to its reader."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.place,)


@pytest.fixture
def net() -> nn.Module:
    """A small network with BatchNorm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "model_state"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_a_torch_file_is_read(tmp_path: Path, net: nn.Module, wrap: str | None, prefix: str, suffix: str) -> None:
    state = {prefix + key: value for key, value in net.state_dict().items()}
    path = tmp_path / f"net{suffix}"
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    read = read_state(path)
    assert list(read) == list(net.state_dict())
    assert all(torch.equal(read[key], value) for key, value in net.state_dict().items())


def test_a_safetensors_file_is_read(tmp_path: Path, net: nn.Module) -> None:
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    read = read_state(tmp_path / "net.safetensors")
    assert all(torch.equal(read[key], value) for key, value in net.state_dict().items())


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    path, touched = tmp_path / "evil.pth", tmp_path / "touched"
    torch.save({"weight": torch.zeros(2), "evil": Evil(touched)}, path)
    with pytest.raises(
        WeightsError, match=r"cannot read the weights in .*evil\.pth: it holds [\w.]+, which is no tensor"
    ) as caught:
        read_state(path)
    assert "weights_only" not in str(caught.value)  # no advice to run the pickle
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(Evil(touched)))
    with pytest.raises(WeightsError, match="cannot read"):
        read_state(path)
    assert not touched.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_or_damaged_file_is_said(tmp_path: Path, net: nn.Module, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    if suffix == ".pth":
        torch.save(net.state_dict(), path)
    else:
        save_file(net.state_dict(), path)
    whole = path.read_bytes()
    for size in [0, 1, 8, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="cannot read"):
            read_state(path)
    for seed in range(20):
        path.write_bytes(random.Random(seed).randbytes(200))
        with pytest.raises(WeightsError, match="cannot read"):
            read_state(path)


def test_an_old_torch_file_that_is_damaged_is_said(tmp_path: Path, net: nn.Module) -> None:
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert list(read_state(path)) == list(net.state_dict())
    for seed in range(200):
        chance = random.Random(seed)
        damaged = bytearray(whole[: chance.randrange(len(whole))])
        for _ in range(10):
            if damaged:
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_state(path)
        except WeightsError as error:
            assert str(path) in error.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no named tensors"),
        ([torch.zeros(1)], "no named tensors but list"),
        (torch.zeros(1), "no named tensors but Tensor"),
        ({"a": 1}, "holds int as 'a'"),
        ({3: torch.zeros(1)}, "holds Tensor as 3"),
        ({"model": {"state_dict": {"a": torch.zeros(1)}}}, "holds dict as 'state_dict'"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=message):
        read_state(tmp_path / "net.pth")


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    for name in ("absent.pth", "absent.safetensors"):
        with pytest.raises(WeightsError, match=r"cannot read the weights in .*absent"):
            read_state(tmp_path / name)
    with pytest.raises(WeightsError, match=r"Known: \.safetensors, \.pth, \.pt\."):
        read_state(tmp_path / "net.npz")


def test_loading_is_strict(net: nn.Module) -> None:
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    state = {**net.state_dict(), "fc.weight": torch.zeros(2, 2)}
    with pytest.raises(WeightsError, match=r"fc\.weight: expected nothing, found \(2, 2\)"):
        load_backbone(other, state, place="net.pth")
    del state["0.bias"]
    state["0.weight"] = torch.zeros(4, 3, 1, 1)
    with pytest.raises(WeightsError) as caught:
        load_backbone(other, state, place="net.pth", ignore=("fc.",))
    assert "net.pth does not fit Sequential" in caught.value.message
    assert "0.weight: expected (4, 3, 3, 3), found (4, 3, 1, 1)" in caught.value.message
    assert "0.bias: expected (4,), found nothing" in caught.value.message
    assert "fc." not in caught.value.message
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_a_head_may_be_left_over_and_a_counter_missing(net: nn.Module) -> None:
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    state = {**net.state_dict(), "fc.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)}
    del state["1.num_batches_tracked"]
    load_backbone(other, state, place="net.pth", ignore=("fc.", "head."))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in other.state_dict().items())


def test_the_wrong_network_is_named() -> None:
    with torch.device("meta"):
        shallow, deep, mobile = resnet18(), resnet50(), mobilenet_v2()
        states = {net: net.state_dict() for net in (shallow, deep, mobile)}
    with pytest.raises(
        WeightsError, match=r"does not fit ResNet-18: .*; and \d+ more\. The weights look like ResNet-50"
    ):
        load_backbone(shallow, states[deep], place="net.pth", ignore=("fc.",))
    with pytest.raises(WeightsError, match=r"does not fit MobileNetV2: .* look like ResNet-18"):
        load_backbone(mobile, states[shallow], place="net.pth")
    assert likely_architecture(resnet34().state_dict()) == "ResNet-34"
    assert likely_architecture({"backbone." + key: value for key, value in states[deep].items()}) == "ResNet-50"
    assert likely_architecture(nn.Linear(2, 2).state_dict()) is None


def test_a_vit_is_recognised() -> None:
    state = {f"blocks.{block}.attn.qkv.weight": torch.zeros(576, 192) for block in range(12)}
    assert likely_architecture(state) == "ViT, 12 blocks of width 192"
    with pytest.raises(WeightsError, match="no network known here"):
        load_backbone(nn.Linear(2, 2), {"a": torch.zeros(1)}, place="net.pth")


def test_the_mobilenet_beside_the_project_loads(shared: Path) -> None:
    path = shared / "weights" / "mobilenet_v2_imagenet.pth"
    state = read_state(path)
    backbone = mobilenet_v2()
    del backbone.classifier
    load_backbone(backbone, state, place=str(path), ignore=("classifier.",))
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, state[key]), key
    with pytest.raises(WeightsError, match=r"classifier\.1\.weight: expected nothing, found \(1000, 1280\)"):
        load_backbone(backbone, state, place=str(path))
    with pytest.raises(WeightsError, match=r"does not fit ResNet-18: .*look like MobileNetV2"):
        load_backbone(resnet18(), state, place=str(path), ignore=("classifier.",))
