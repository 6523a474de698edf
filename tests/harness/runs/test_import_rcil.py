"""Checkpoints of RCIL's release, of step 0 and of a later one with merged branches, become ours."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from cispbench.harness.models.encoders import ResNetEncoder, leaky_relu
from cispbench.harness.models.released import load_released, released_code, translate
from cispbench.harness.models.two_branches import TwoBranchDeepLabV3
from cispbench.splits.errors import WeightsError


def network() -> TwoBranchDeepLabV3:
    from torchvision.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    encoder = ResNetEncoder(ResNet(Bottleneck, [1, 2, 1, 1]), stem_activation=False)
    return TwoBranchDeepLabV3(encoder, hidden=8, activation=leaky_relu)


def released(model: nn.Module) -> dict[str, Tensor]:
    """Name the state of our network as the release does; merged branches have norms that do nothing."""
    found = {}
    for key, value in model.state_dict().items():
        if key == "_extra_state":
            continue
        name = re.sub(
            r"^encoder\.net\.layer(\d)\.(\d)\.", lambda m: f"body.mod{int(m[1]) + 1}.block{int(m[2]) + 1}.convs.", key
        )
        name = name.replace("convs.downsample.0", "proj_conv").replace("convs.downsample.1", "proj_bn")
        name = name.replace("encoder.net.", "body.mod1.").replace("classifiers.", "cls.")
        for branch, suffix in (("first", ""), ("second", "_new")):
            name = name.replace(f"conv2.{branch}.convolutions.0", f"conv2{suffix}")
            name = name.replace(f"conv2.{branch}.norm", f"bn2{suffix}")
            name = name.replace(f"map_convs.0.{branch}.convolutions", f"map_convs{suffix}")
            name = name.replace(f"map_convs.0.{branch}.norm", f"map_bn{suffix}")
        found[name] = value.clone()
    for name in [name for name in found if name.endswith("conv2.bias")]:
        found |= identity(name.replace("conv2.bias", "bn2"), found[name].numel())
    if "head.map_convs.0.bias" in found:
        found |= identity("head.map_bn", 4 * found["head.map_convs.0.bias"].numel())
    return found


def identity(norm: str, channels: int) -> dict[str, Tensor]:
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    return {
        f"{norm}.weight": ones, f"{norm}.bias": zeros, f"{norm}.running_mean": zeros, f"{norm}.running_var": ones,
        f"{norm}.num_batches_tracked": torch.tensor(0),
    }  # fmt: skip


@pytest.mark.parametrize("growths", [[4], [4, 2], [4, 2, 1]])
def test_a_released_state_computes_what_ours_did(growths: list[int]) -> None:
    model = network()
    for count in growths:
        model.grow(count)
    state = released(model)
    assert ("body.mod2.block1.convs.conv2.bias" in state) == (len(growths) > 1)
    assert {"body.mod3.block2.convs.conv2_new.weight", "head.map_bn_new.bias", "head.map_convs_new.3.weight"} <= set(
        state
    )
    translated = translate(state, "rcil", "a file")
    assert translated.groups == tuple(growths)
    copy = network()
    load_released(copy, translated, "a file")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(copy.eval()(images).logits, model.eval()(images).logits)


@pytest.mark.parametrize("name", ["body.mod2.block1.convs.bn2.running_mean", "head.map_bn.weight"])
def test_a_merged_branch_whose_norm_does_something_is_refused(name: str) -> None:
    model = network()
    for count in (4, 2):
        model.grow(count)
    state = released(model)
    state[name] = state[name] + 0.5
    with pytest.raises(WeightsError, match=r"a file: .*first\.norm.* belongs to a merged branch"):
        translate(state, "rcil", "a file")


def test_the_release_fits_the_networks_with_two_branches() -> None:
    assert all(name.startswith("deeplabv3-resnet101-rcil") for name in released_code("rcil").models)
