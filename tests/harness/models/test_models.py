"""Every model grows, keeps its old classes' logits, and shows the features that the methods read."""

from __future__ import annotations

import pytest
import torch

from cispbench.harness.models.catalogue import build_model

SMALL = ["segmenter-tiny", "deeplabv3-tiny", "deeplabv3-mobilenetv2", "segmenter-mobilenetv2", "deeplabv3-resnet18",
         "deeplabv3-tiny-branches", "deeplabv3-mobilenetv2-branches", "deeplabv3-tiny-dkd"]  # fmt: skip
SIZES = {name: 24 for name in SMALL if "-tiny" in name}


def grown(name: str, *classes: int):
    torch.manual_seed(0)
    model = build_model(name, SIZES.get(name, 64))
    for count in classes:
        model.grow(count)
    return model.eval()


@pytest.mark.parametrize("name", SMALL)
def test_shapes_of_everything_a_method_reads(name):
    model, side = grown(name, 4, 2), SIZES.get(name, 64)
    output = model(torch.randn(2, 3, side, side))
    h, w = output.masks.shape[-2:]
    width = output.patches.shape[-1]
    assert output.logits.shape == (2, 6, side, side)
    assert output.patches.shape == (2, h * w, width)
    assert output.class_features.shape == (2, 6, width)
    assert output.class_tokens.shape[0] == 6
    assert output.stages[-1].shape == (2, width, h, w)
    assert all(stage.ndim == 4 for stage in output.stages)
    assert model.num_classes == 6
    if name not in SIZES:
        assert (h, w) == (side // 16, side // 16)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient_and_a_section(name):
    model = grown(name, 3, 1).train()
    side = SIZES.get(name, 64)
    output = model(torch.randn(2, 3, side, side))
    (output.logits.square().mean() + output.patches.square().mean()).backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert {section for section, _, _ in model.named_sections()} <= {"encoder", "decoder", "classifier"}
    assert {section for section, _, _ in model.named_sections()} >= {"encoder", "decoder"}


@pytest.mark.parametrize("name", ["deeplabv3-tiny", "deeplabv3-mobilenetv2", "deeplabv3-tiny-branches"])
def test_growth_leaves_a_linear_classifiers_old_logits_alone(name):
    model, images = grown(name, 4), torch.randn(1, 3, 64, 64)
    before = model(images).logits
    model.grow(3)
    torch.testing.assert_close(model.eval()(images).logits[:, :4], before)


def test_segmenter_keeps_the_background_in_a_group_of_its_own():
    groups = [group.bias.numel() for group in grown("segmenter-tiny", 4, 2).class_groups()]
    assert groups == [1, 3, 2]


def test_mask_norm_uses_the_unbiased_deviation():
    from cispbench.harness.models.segmenter import MaskNorm

    norm = MaskNorm()
    norm.grow(3)
    masks = torch.tensor([[[0.1, 0.5, 0.3]]])
    expected = (masks - 0.3) / (0.2 + 1e-5)
    torch.testing.assert_close(norm(masks).detach(), expected)


def test_frozen_batch_norm_keeps_the_encoders_statistics():
    model = grown("deeplabv3-tiny", 3)
    model.freeze_batch_norm = True
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    model.train()(torch.randn(4, 3, 24, 24))
    changed = {key.split(".")[0] for key, value in before.items() if not torch.equal(model.state_dict()[key], value)}
    assert changed == {"head"}


def test_resnet_stage_is_what_the_last_activation_sees():
    model = grown("deeplabv3-resnet18", 3)
    x, stages = model.encoder(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(torch.nn.functional.leaky_relu(stages[-1], 0.01), x)
    assert bool((stages[-1] < 0).any())


def test_torchvisions_dilation_is_torchvisions():
    from torchvision.models import resnet50
    from torchvision.models._utils import IntermediateLayerGetter

    from cispbench.harness.models.encoders import ResNetEncoder

    torch.manual_seed(0)
    theirs = resnet50(weights=None, replace_stride_with_dilation=[False, False, True])
    ours = resnet50(weights=None)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    expected = IntermediateLayerGetter(theirs, {"layer4": "out"}).eval()(images)["out"]
    torch.testing.assert_close(ResNetEncoder(ours, "relu", first_dilated=False).eval()(images)[0], expected)
    other = resnet50(weights=None)
    other.load_state_dict(theirs.state_dict())
    assert not torch.allclose(ResNetEncoder(other, "relu").eval()(images)[0], expected)


def test_norms_of_the_pyramid_networks_move_as_in_the_releases():
    for name in ("deeplabv3-tiny-branches", "deeplabv3-tiny-dkd"):
        model = grown(name, 2)
        slow = {norm.momentum for norm in norms(model.encoder)}
        rest = {norm.momentum for norm in norms(model)} - slow
        assert (slow, rest) == ({0.01}, {0.1})


def norms(module):
    return [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segmenter-vit-ti16", "deeplabv3-resnet50"])
def test_larger_models_at_another_size_than_built_for(name):
    model = build_model(name, 96)
    model.grow(3)
    output = model.eval()(torch.randn(1, 3, 60, 91))
    assert output.logits.shape == (1, 3, 60, 91)
    assert output.masks.shape[-2:] == (4, 6)
