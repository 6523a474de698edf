"""Counted operations beside calculations by hand, layer by layer, and kept bytes beside those of real tensors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from cispbench.harness.cost.counting import META, PassCount, count_head, count_trunk
from cispbench.harness.cost.flops import Flops
from cispbench.harness.models.catalogue import build_model, least_images
from cispbench.harness.models.interface import IncrementalModel


def linear(rows: int, inputs: int, outputs: int) -> int:
    """Each of rows x outputs sums is of ``inputs`` products: a multiplication and an addition each."""
    return 2 * rows * inputs * outputs


def convolution(side: int, inputs: int, outputs: int, kernel: int = 1) -> int:
    """The same for each of side x side pixels of the map that comes out."""
    return 2 * side**2 * kernel**2 * inputs * outputs


def block(tokens: int, width: int) -> int:
    """A transformer block with four times as many hidden values."""
    attention = 2 * linear(tokens, width, tokens)  # queries with keys, then scores with values, all heads together
    projections = linear(tokens, width, 3 * width) + linear(tokens, width, width)
    return attention + projections + linear(tokens, width, 4 * width) + linear(tokens, 4 * width, width)


def mask_decoder(patches: int, width: int, classes: int) -> int:
    """Two blocks over patches and classes; a projection before them, one of each kind behind, and the cosine."""
    behind = linear(patches, width, width) + linear(classes, width, width) + linear(patches, width, classes)
    return linear(patches, width, width) + 2 * block(patches + classes, width) + behind


def segmenter_vit_b16(classes: int) -> tuple[int, int]:
    """512 / 16 = 32 patches a side, and a class token of ImageNet's, which the decoder does not read."""
    first = linear(32 * 32, 3 * 16 * 16, 768)
    return first + 12 * block(32 * 32 + 1, 768) + mask_decoder(32 * 32, 768, classes), first


def pyramid(side: int, inputs: int, width: int, classes: int) -> int:
    """One 1x1 and three 3x3 convolutions side by side, the pooled branch, what joins them, and the classifier."""
    branches = convolution(side, inputs, width) + 3 * convolution(side, inputs, width, 3)
    pooled = convolution(1, inputs, width) + convolution(1, width, width)
    return branches + pooled + convolution(side, 4 * width, width) + convolution(side, width, classes)


def deeplabv3_resnet101(classes: int) -> tuple[int, int]:
    """Stages of 3, 4, 23 and 3 blocks at 1/4, 1/8, 1/16 and again 1/16 of 512."""
    first = convolution(256, 3, 64, 7)
    total, inputs, before = first, 64, 128
    for blocks, width, side in ((3, 64, 128), (4, 128, 64), (23, 256, 32), (3, 512, 32)):
        total += convolution(side, inputs, 4 * width)  # the way past the first block
        for _ in range(blocks):
            # The first block of a stage makes the map smaller in its 3x3 convolution, behind the first 1x1.
            total += convolution(before, inputs, width) + convolution(side, width, width, 3)
            total += convolution(side, width, 4 * width)
            inputs, before = 4 * width, side
    return total + pyramid(32, 2048, 256, classes), first


def deeplabv3_mobilenetv2(classes: int) -> tuple[int, int]:
    """Table 2 of the paper: expansion, channels and number of blocks, here with the side of the map behind them."""
    first = convolution(256, 3, 32, 3)
    total, inputs, before = first, 32, 256
    rows = ((1, 16, 1, 256), (6, 24, 2, 128), (6, 32, 3, 64), (6, 64, 4, 32), (6, 96, 3, 32), (6, 160, 3, 32),
            (6, 320, 1, 32))  # fmt: skip
    for expansion, outputs, blocks, side in rows:
        for _ in range(blocks):
            hidden = expansion * inputs
            total += convolution(before, inputs, hidden) if expansion > 1 else 0
            total += convolution(side, 1, hidden, 3) + convolution(side, hidden, outputs)  # depthwise: one input each
            inputs, before = outputs, side
    return total + pyramid(32, 320, 128, classes), first


def segmenter_tiny(classes: int) -> tuple[int, int]:
    """Scenes of 48 pixels: a convolutional stem down to 12 x 12 tokens, two blocks of width 64."""
    first = convolution(24, 3, 32, 3)
    stem = first + convolution(24, 32, 64, 3) + convolution(12, 64, 64, 3) + convolution(12, 64, 64)
    return stem + 2 * block(144, 64) + mask_decoder(144, 64, classes), first


HAND = {
    ("segmenter-vit-b16", 512): segmenter_vit_b16, ("deeplabv3-resnet101", 512): deeplabv3_resnet101,
    ("deeplabv3-mobilenetv2", 512): deeplabv3_mobilenetv2, ("segmenter-tiny", 48): segmenter_tiny,
}  # fmt: skip


def without_data(model: str, crop: int, *groups: int) -> IncrementalModel:
    network = build_model(model, crop)
    for classes in groups:
        network.grow(classes)
    return network.to(META).train()


def counted(network: IncrementalModel, crop: int, batch: int, precision: str = "fp32") -> tuple[PassCount, PassCount]:
    trunk = count_trunk(network, (crop, crop), batch, precision)
    return trunk.count, count_head(network, trunk, precision)


@pytest.mark.parametrize(("model", "crop"), HAND)
def test_the_operations_are_those_of_a_calculation_by_hand(model: str, crop: int) -> None:
    total, first = HAND[model, crop](17)
    trunk, head = counted(without_data(model, crop, 16, 1), crop, least_images(model))
    assert (trunk.forward + head.forward).total == total
    # Backward each product occurs twice, for weights and for inputs; nobody needs the gradient of the images.
    assert (trunk.backward + head.backward).total == 2 * total - first


def test_kinds_are_told_apart() -> None:
    trunk, head = counted(without_data("segmenter-tiny", 48, 17), 48, 1)
    stem = sum(convolution(*layer) for layer in ((24, 3, 32, 3), (24, 32, 64, 3), (12, 64, 64, 3), (12, 64, 64)))
    assert trunk.forward == Flops(2 * block(144, 64), stem)
    assert head.forward.convolutions == 0


def test_the_size_of_the_batch_changes_nothing() -> None:
    network = without_data("deeplabv3-tiny", 32, 3)
    for few, many in zip(counted(network, 32, 2), counted(network, 32, 6), strict=True):
        assert few.forward.total == pytest.approx(many.forward.total)
        assert few.backward.total == pytest.approx(many.backward.total)
        assert few.saved == pytest.approx(many.saved, rel=0.05)  # statistics of batch norms are kept once


def really_kept(network: IncrementalModel, crop: int, batch: int) -> float:
    """The bytes that real tensors keep for the backward pass, apart from the weights."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.randn(batch, 3, crop, crop))
    return sum(storage.nbytes() for storage in kept.values()) / batch


@pytest.mark.parametrize("model", ["deeplabv3-tiny", "deeplabv3-mobilenetv2", "segmenter-tiny", "segmenter-vit-ti16"])
def test_the_kept_bytes_are_those_of_real_tensors(model: str) -> None:
    network = build_model(model, 64)
    network.grow(5)
    found = counted(copy.deepcopy(network).to(META).train(), 64, 2)
    assert sum(part.saved for part in found) == pytest.approx(really_kept(network.train(), 64, 2), rel=0.01)


@pytest.mark.parametrize("model", ["deeplabv3-tiny", "segmenter-vit-ti16"])
def test_half_precision_keeps_less_and_computes_as_much(model: str) -> None:
    network = without_data(model, 64, 5)
    full, half = counted(network, 64, 2), counted(network, 64, 2, "bf16")
    assert [part.forward for part in full] == [part.forward for part in half]
    # Layer norms and the sums of a transformer stay in full precision, the maps of a convolutional network do not.
    low, high = (0.45, 0.55) if model == "deeplabv3-tiny" else (0.5, 0.65)
    assert low < sum(part.saved for part in half) / sum(part.saved for part in full) < high


def test_what_nothing_learns_has_no_backward_pass() -> None:
    network = without_data("deeplabv3-tiny", 32, 3)
    for section in network.sections().values():
        section.requires_grad_(False)
    trunk, head = counted(network, 32, 2)
    assert trunk.backward.total == 0 and trunk.saved == 0
    # The classifier's weights alone: the map that it reads needs no gradient.
    assert head.backward.total == head.forward.total == convolution(8, 48, 3)
