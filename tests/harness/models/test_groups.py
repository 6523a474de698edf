"""Networks grow by groups: their roles, channels that are no classes, their maps, and the trunk that is run once."""

from __future__ import annotations

import pytest
import torch

from cispbench.harness.models.aspp import PyramidHead
from cispbench.harness.models.branches import BranchedDeepLabV3
from cispbench.harness.models.catalogue import build_model
from cispbench.harness.models.encoders import TinyCNN
from cispbench.harness.models.groups import AUXILIARY, Group
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.step import Batch

SSUL = (Group(extra=1, role="unknown"), Group(1, role="background"), Group(3))
IMAGES = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def branched(dropout: float = 0.0) -> IncrementalModel:
    torch.manual_seed(0)
    encoder = TinyCNN(16)
    return BranchedDeepLabV3(encoder, PyramidHead(encoder.width, width=8, rates=(1, 2)), 8, dropout)


def networks() -> dict[str, IncrementalModel]:
    torch.manual_seed(0)
    return {"linear": build_model("deeplabv3-tiny", 24), "tokens": build_model("segmenter-tiny", 24),
            "branches": branched()}  # fmt: skip


@pytest.mark.parametrize("kind", ["linear", "tokens", "branches"])
def test_a_network_grows_by_groups_with_roles_and_further_channels(kind):
    model = networks()[kind]
    model.grow(SSUL)
    model.grow((Group(2, extra=1),))
    groups = model.class_groups()
    assert [(g.role, g.extra, g.classes) for g in groups] == [
        ("unknown", 1, 0), ("background", 0, 1), ("classes", 0, 3), ("classes", 1, 2),
    ]  # fmt: skip
    assert model.num_classes == 6
    output = model.eval()(IMAGES)
    assert output.logits.shape[1] == 8
    assert [head.shape[1] for head in output.heads] == [1, 1, 3, 3]
    assert torch.equal(torch.cat(output.heads, 1), output.masks)


@pytest.mark.parametrize("kind", ["linear", "tokens", "branches"])
def test_every_parameter_outside_the_trunk_belongs_to_one_group_or_to_the_decoder(kind):
    model = networks()[kind]
    model.grow(SSUL)
    held = [id(parameter) for group in model.class_groups() for parameter in group.parameters()]
    assert len(held) == len(set(held))
    classifier = {id(p) for section, _, p in model.named_sections() if section == "classifier"}
    assert classifier <= set(held)


def test_a_number_is_one_group_of_that_many_classes():
    by_number, by_group = build_model("deeplabv3-tiny", 24), build_model("deeplabv3-tiny", 24)
    by_number.grow(4)
    by_group.grow((Group(4),))
    assert by_number.groups == by_group.groups == [Group(4)]


@pytest.mark.parametrize(("groups", "words"), [((), "at least 1 group"), (0, "at least 1 channel")])
def test_growth_by_nothing_is_refused(groups, words):
    with pytest.raises(ValueError, match=words):
        build_model("deeplabv3-tiny", 24).grow(groups)


def test_a_group_that_a_network_cannot_have_is_refused_before_anything_is_added():
    model = build_model("segmenter-tiny", 24)
    with pytest.raises(ValueError, match=r"Segmenter cannot grow by Group\(.*role='auxiliary'\): its groups all pass"):
        model.grow((Group(4), Group(1, role=AUXILIARY)))
    assert model.groups == []
    assert model.class_groups() == []


def test_an_auxiliary_group_learns_and_passes_nothing_back():
    model = networks()["linear"]
    model.grow((Group(1, role=AUXILIARY), Group(3)))
    output = model(IMAGES)
    output.logits[:, :1].square().mean().backward()
    learnt = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert learnt == {"classifiers.0.weight", "classifiers.0.bias"}


def test_an_auxiliary_groups_logits_are_those_of_any_group():
    model = networks()["linear"]
    model.grow((Group(1, role=AUXILIARY), Group(3)))
    plain = networks()["linear"]
    plain.grow((Group(1), Group(3)))
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(IMAGES).logits, plain.eval()(IMAGES).logits)


def test_a_branch_is_its_groups_own_and_gives_its_map():
    model = branched().eval()
    model.grow(SSUL)
    output = model(IMAGES)
    for group, head, found in zip(model.class_groups(), output.heads, output.extras["branch_features"], strict=True):
        torch.testing.assert_close(group.branch.features(output.stages[-1]), found)
        torch.testing.assert_close(group.branch.classifier(found), head)
        assert len(group.parameters()) == 5  # convolution, norm (2), classifier (2)


def test_networks_without_branches_say_so():
    model = build_model("deeplabv3-tiny", 24)
    model.grow(2)
    with pytest.raises(ValueError, match="the network has no branches"):
        _ = model.class_groups()[0].branch


@pytest.mark.parametrize("kind", ["linear", "tokens", "branches"])
def test_the_trunk_is_run_once_for_two_networks_that_share_it(kind):
    model, other = networks()[kind], networks()[kind]
    model.grow(3)
    other.grow(3)
    other.grow(2)
    for mine, its in zip(model.trunk(), other.trunk(), strict=True):
        its.load_state_dict(mine.state_dict())
    model.eval(), other.eval()
    features = model.features(IMAGES)
    assert torch.equal(model(IMAGES, features=features).logits, model(IMAGES).logits)
    assert torch.equal(other(IMAGES, features=features).logits, other(IMAGES).logits)


@pytest.mark.parametrize("kind", ["linear", "tokens", "branches"])
def test_the_trunk_is_all_that_features_runs(kind):
    model = networks()[kind].eval()
    model.grow(3)
    ran: set[torch.nn.Module] = set()
    for part in model.modules():
        part.register_forward_hook(lambda module, *_: ran.add(module))
    model.features(IMAGES)
    assert ran <= {part for root in model.trunk() for part in root.modules()}
    assert set(model.trunk()) <= ran


def test_dropout_comes_after_what_is_shared():
    model = branched(dropout=0.5).train()
    model.grow(2)
    for part in model.trunk():
        part.eval()
    with torch.no_grad():
        features = model.features(IMAGES)
        assert torch.equal(features.decoded, model.features(IMAGES).decoded)
        assert not torch.equal(model(IMAGES, features=features).logits, model(IMAGES, features=features).logits)


def test_a_batch_with_companions_is_what_a_network_takes():
    model = branched().eval()
    model.grow(2)
    batch = Batch(IMAGES, torch.zeros(2, 24, 24), ("a", "b"), companions={"saliency": torch.zeros(2, 24, 24)})
    assert torch.equal(model(*batch.inputs).logits, model(IMAGES).logits)
