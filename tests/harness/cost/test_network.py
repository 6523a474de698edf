"""What a step costs a network: previous network, frozen parts, a shared trunk, and the memory of a device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cispbench.harness.cost.network import Layouts, NetworkCounts, TrainingCount
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.deeplab import DeepLab
from cispbench.harness.models.groups import Group
from cispbench.harness.recipes.fields import OptimRecipe
from cispbench.splits.errors import RunError
from cispbench.splits.settings import parse_setting

SETTING = parse_setting("overlapped-15-5")
BASE: Layouts = ((Group(16),),)
GROWN: Layouts = (*BASE, (Group(5),))
PHASE = OptimRecipe(epochs=1)
FROZEN = replace(
    PHASE, rates={"encoder": 0.0, "decoder": 0.0}, frozen_norms=("encoder", "decoder"), frozen_dropout=("all",)
)


@pytest.fixture(scope="module")
def counts() -> NetworkCounts:
    return NetworkCounts("deeplabv3-tiny", 32, False)


def second_step(counts: NetworkCounts, phase: OptimRecipe = PHASE, previous: int = 1) -> TrainingCount:
    return counts.training(SETTING, 1, GROWN, phase, previous)


@pytest.mark.parametrize(("model", "gflop"), [("segmenter-vit-b16", 1010), ("deeplabv3-resnet101", 536)])
def test_an_image_of_the_papers_costs_four_forward_passes(model: str, gflop: float) -> None:
    counts = NetworkCounts(model, 512, False)
    flops = counts.training(SETTING, 1, GROWN, PHASE, 1).flops.total
    assert flops == pytest.approx(4 * counts.forward(GROWN).total, rel=0.005)
    assert flops / 1e9 == pytest.approx(gflop, rel=0.005)


def test_the_previous_network_has_the_classes_of_the_step_before(counts: NetworkCounts) -> None:
    alone, once, twice = (second_step(counts, previous=passes).flops.total for passes in (0, 1, 2))
    assert once - alone == pytest.approx(counts.forward(BASE).total)
    assert twice - once == pytest.approx(counts.forward(BASE).total)
    # 5 classes more in a 1x1 convolution that reads 48 channels of 8 x 8 pixels.
    assert counts.forward(GROWN).total - counts.forward(BASE).total == pytest.approx(2 * 5 * 48 * 64)


def test_frozen_parts_have_no_backward_pass(counts: NetworkCounts) -> None:
    frozen_encoder = replace(PHASE, rates={"encoder": 0.0})
    full, without = second_step(counts, previous=0), second_step(counts, frozen_encoder, previous=0)
    assert counts.forward(GROWN).total < without.flops.total < 0.9 * full.flops.total
    assert without.memory.image < full.memory.image and without.memory.fixed < full.memory.fixed


def test_a_frozen_trunk_is_run_once_for_both_networks(counts: NetworkCounts) -> None:
    head = 2 * 16 * 48 * 64  # the previous network's classifier, all that it computes by itself
    both, alone = second_step(counts, FROZEN), second_step(counts, FROZEN, previous=0)
    assert both.flops.total - alone.flops.total == pytest.approx(head)
    # With norms that learn statistics the two trunks compute different maps.
    learning = replace(FROZEN, frozen_norms=())
    apart = second_step(counts, learning).flops.total - second_step(counts, learning, previous=0).flops.total
    assert apart == pytest.approx(counts.forward(BASE).total)


def test_the_memory_by_hand(counts: NetworkCounts) -> None:
    network = build_model("deeplabv3-tiny", 32)
    network.grow(16)
    before = sum(parameter.numel() for parameter in network.parameters())
    numbers = before + 5 * 48 + 5
    sgd = second_step(counts).memory
    # Weights, gradients, momenta; and the previous network.
    assert sgd.fixed == 4 * (3 * numbers + before)
    adamw = second_step(counts, replace(PHASE, optimizer="adamw")).memory
    assert adamw.fixed - sgd.fixed == 4 * numbers  # a second moment
    half = second_step(counts, replace(PHASE, precision="fp16")).memory
    assert half.fixed == 4 * (3 * numbers + before) + 2 * (numbers + before)  # weights in fp16, too
    # Logits and two gradients of 21 channels, and the previous logits of 16, beside what the network keeps.
    loss = 4 * 32 * 32 * (3 * 21 + 16)
    assert loss < sgd.image and half.image - loss == pytest.approx((sgd.image - loss) / 2, rel=0.1)
    assert sgd.bytes(3) == sgd.fixed + 3 * sgd.image


def test_no_random_state_changes() -> None:
    before = torch.random.get_rng_state()
    second_step(NetworkCounts("deeplabv3-tiny", 32, False))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_that_looks_at_values_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    features = DeepLab.features
    monkeypatch.setattr(DeepLab, "features", lambda self, images: features(self, images * float(images.mean())))
    with pytest.raises(RunError, match="deeplabv3-tiny cannot be counted on tensors without data"):
        second_step(NetworkCounts("deeplabv3-tiny", 32, False))


@pytest.mark.parametrize("what", ["features", "grow", "train", "__deepcopy__"])
def test_whatever_a_network_raises_is_an_error_that_names_it(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("not on tensors without data")

    monkeypatch.setattr(DeepLab, what, fail, raising=False)
    with pytest.raises(RunError, match=r"deeplabv3-tiny cannot be counted .*AssertionError: not on tensors"):
        second_step(NetworkCounts("deeplabv3-tiny", 32, False))
