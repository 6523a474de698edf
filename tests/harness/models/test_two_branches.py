"""Networks with two branches: they double, draw, merge and freeze as RCIL's do, and are rebuilt from their weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.deeplab import DeepLabV3
from cispbench.harness.models.encoders import ResNetEncoder, TinyCNN
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.models.two_branches import (
    Branch,
    Draws,
    TwoBranchDeepLabV3,
    TwoBranches,
    double_convolutions,
)

SIDE = 32
NAMES = ["deeplabv3-tiny-rcil", "deeplabv3-mobilenetv2-rcil", "basic", "bottleneck"]


def bare(name: str, **options: Any) -> TwoBranchDeepLabV3:
    """Build a small network with two branches and no class."""
    torch.manual_seed(0)
    if name in ("basic", "bottleneck"):
        from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

        net = ResNet(BasicBlock if name == "basic" else Bottleneck, [1, 1, 1, 1])
        return TwoBranchDeepLabV3(ResNetEncoder(net), hidden=8, **options)
    model = build_model(name, SIDE) if not options else TwoBranchDeepLabV3(TinyCNN(16), hidden=8, **options)
    assert isinstance(model, TwoBranchDeepLabV3)
    return model


def grown(name: str, *classes: int, **options: Any) -> TwoBranchDeepLabV3:
    """Build a network, grow it by ``classes`` one after the other, and give its norms statistics."""
    model = bare(name, **options)
    for count in classes:
        model.grow(count)
        stir(model)
    return model


def stir(model: nn.Module) -> None:
    """Give norms scales of both signs, shifts and statistics, so that no part of them can be forgotten."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.uniform_(-1.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]


def images() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def branches(model: nn.Module) -> list[TwoBranches]:
    return [module for module in model.modules() if isinstance(module, TwoBranches)]


@pytest.mark.parametrize("name", NAMES)
def test_every_3x3_convolution_and_the_pyramid_exist_twice(name: str) -> None:
    model = grown(name, 4)
    inside = {id(c) for one in branches(model) for branch in (one.first, one.second) for c in branch.convolutions}
    left = [c for c in model.modules() if isinstance(c, nn.Conv2d) and c.kernel_size == (3, 3) and id(c) not in inside]
    assert left == []
    assert (
        len(branches(model))
        == {"deeplabv3-tiny-rcil": 4, "deeplabv3-mobilenetv2-rcil": 18}.get(
            name, {"basic": 8, "bottleneck": 4}.get(name, 0)
        )
        + 1
    )
    pyramid = branches(model.head)
    assert len(pyramid) == 1
    assert len(pyramid[0].first.convolutions) == 4


@pytest.mark.parametrize("name", NAMES)
def test_encoders_start_both_branches_alike_and_the_pyramid_does_not(name: str) -> None:
    model = bare(name)
    model.grow(4)
    for one in branches(model):
        same = torch.equal(one.first.convolutions[0].weight, one.second.convolutions[0].weight)  # type: ignore[arg-type]
        assert same == (one not in branches(model.head))


def test_published_weights_reach_both_branches() -> None:
    from torchvision.models.resnet import Bottleneck, ResNet

    model, published = bare("bottleneck"), ResNet(Bottleneck, [1, 1, 1, 1])
    model.load_encoder(published.state_dict(), "published")
    model.grow(4)
    one = branches(model.encoder)[0]
    for branch in (one.first, one.second):
        assert torch.equal(branch.convolutions[0].weight, published.layer1[0].conv2.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_takes_the_mean_and_before_doubling_it_is_the_plain_network(name: str) -> None:
    """With both branches equal the network computes what DeepLabV3 computes, apart from where stages are read."""
    model = bare(name)
    plain = DeepLabV3(
        copy.deepcopy(model.encoder), hidden=model.width, rates=[1, 2, 3] if "tiny" in name else (6, 12, 18)
    )
    plain.head.load_state_dict(model.head.state_dict())
    plain.head.activation = copy.deepcopy(model.head.activation)
    model.grow(4)
    plain.grow(4)
    plain.classifiers.load_state_dict(model.classifiers.state_dict())
    second = branches(model.head)[0]
    second.second.load_state_dict(second.first.state_dict())
    ours, theirs = model.eval()(images()), plain.eval()(images())
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_merging_keeps_the_first_half_of_the_function(name: str) -> None:
    """What the merged branch computes is the mean of both branches; the second one stays as it is."""
    model = grown(name, 4).eval()
    before = copy.deepcopy(model)
    model.grow(2)
    for one, old in zip(branches(model), branches(before), strict=True):
        x = torch.randn(1, one.first.convolutions[0].in_channels, 9, 9)  # type: ignore[call-overload]
        torch.testing.assert_close(one.eval().first(x), old.eval()(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.second(x), old.second(x), rtol=0, atol=0)
        torch.testing.assert_close(one(x), (old.first(x) + 3 * old.second(x)) / 4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("growths", [1, 2])
def test_copy_merged_keeps_the_whole_function(growths: int) -> None:
    model = grown("bottleneck", *[3] * growths, second_branch="copy_merged").eval()
    before = model(images()).logits
    model.grow(2)
    after = model.eval()(images()).logits[:, : before.shape[1]]
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_keep_changes_the_function() -> None:
    model = grown("bottleneck", 3).eval()
    before = model(images()).logits
    model.grow(2)
    assert (model.eval()(images()).logits[:, :3] - before).abs().max() > 0.01 * before.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_the_merged_branch_learns_nothing_and_all_else_does(name: str) -> None:
    model = grown(name, 4, 2).train()
    merged = {id(p) for one in branches(model) for p in one.first.parameters()}
    assert {id(p) for p in model.parameters() if not p.requires_grad} == merged
    model(images()).logits.square().mean().backward()
    assert all((p.grad is None) == (id(p) in merged) for p in model.parameters())
    assert all(convolution.bias is not None for one in branches(model) for convolution in one.first.convolutions)


@pytest.mark.parametrize("growths", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_rebuilt_from_its_weights(name: str, growths: int) -> None:
    model = grown(name, *[2] * growths)
    rebuilt = bare(name)
    for _ in range(growths):
        rebuilt.grow(2)
    rebuilt.load_state_dict(model.state_dict())
    for network in (model, rebuilt):
        network.train()
    # The draws go on from the same state, too.
    assert torch.equal(model(images()).logits, rebuilt(images()).logits)
    assert torch.equal(model.eval()(images()).logits, rebuilt.eval()(images()).logits)


def test_draws_are_new_in_each_pass_and_equal_under_one_seed() -> None:
    def outputs(seed: int) -> list[Tensor]:
        model = grown("basic", 4)
        torch.manual_seed(seed)
        model.grow(2)
        torch.manual_seed(100 + seed)  # what a process draws besides must not matter
        return [model.train()(images()).masks for _ in range(2)]

    first, again = outputs(5), outputs(5)
    assert not torch.equal(first[0], first[1])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_evaluation_draws_nothing() -> None:
    model = grown("basic", 4).eval()
    state = model.draws.generator.get_state()
    model(images())
    assert torch.equal(state, model.draws.generator.get_state())


def test_a_copied_network_draws_on_its_own_with_one_generator() -> None:
    model = grown("basic", 4).train()
    other = copy.deepcopy(model)
    assert {id(one.draws) for one in branches(other)} == {id(other.draws)} != {id(model.draws)}
    assert torch.equal(model(images()).masks, other(images()).masks)


def test_stages_are_read_after_the_activation() -> None:
    model = grown("basic", 4).eval()
    assert isinstance(model, IncrementalModel)
    output = model(images())
    assert torch.equal(output.stages[3], output.encoded)


def test_the_released_stem_has_no_activation() -> None:
    stems = {name: build_model(f"deeplabv3-resnet101-rcil{name}", SIDE) for name in ("", "-leaky-stem")}
    assert isinstance(stems[""].encoder.net.relu, nn.Identity)  # type: ignore[union-attr]
    assert isinstance(stems["-leaky-stem"].encoder.net.relu, nn.LeakyReLU)  # type: ignore[union-attr]


def test_a_recorded_block(golden: Path) -> None:
    """A bottleneck of torchvision's with two branches computes RCIL's block, in training and evaluation."""
    d = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(golden / "rcil_block.npz").items()}
    block, x = recorded_block(d), d["x"].clone().requires_grad_()
    output = block.train()(x)
    output.square().mean().backward()
    close(output, d["output"])
    close(x.grad, d["grad"])
    state = block.state_dict()
    for key, value in d.items():
        if key.startswith("after."):
            close(state[ours(key.removeprefix("after."))], value)
    close(block.eval()(d["x"]), d["eval_output"])


def close(found: Tensor | None, wanted: Tensor) -> None:
    assert found is not None
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def ours(name: str) -> str:
    """Return our name of a tensor of the released block."""
    for theirs, own in (
        ("convs.", ""), ("conv2_new.", "conv2.second.convolutions.0."), ("bn2_new.", "conv2.second.norm."),
        ("proj_conv", "downsample.0"), ("proj_bn", "downsample.1"),
    ):  # fmt: skip
        name = name.replace(theirs, own)
    if name.startswith("conv2.weight"):
        return "conv2.first.convolutions.0.weight"
    return name.replace("bn2.", "conv2.first.norm.")


def recorded_block(d: dict[str, Tensor]) -> nn.Module:
    from torchvision.models.resnet import Bottleneck

    class Block(Bottleneck):
        expansion = 2

    class Recorded(Draws):
        def __call__(self, channels: int) -> Tensor:
            assert d["draws"].shape == (1, channels, 1, 1)
            return d["draws"]

    shortcut = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8))
    block = Block(6, 4, downsample=shortcut)
    block.relu = nn.LeakyReLU(0.01)  # type: ignore[assignment]
    double_convolutions(block, Recorded(), fresh=True)
    block.load_state_dict({ours(key.removeprefix("p.")): value for key, value in d.items() if key.startswith("p.")})
    assert isinstance(block.conv2, TwoBranches)
    assert isinstance(block.conv2.first, Branch)
    return block
