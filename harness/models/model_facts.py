"""Hold an entry's facts against the network that it builds: a test for built-in models and for those of plug-ins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cispbench.harness.models.catalogue import SECTIONS, ModelSpec
from cispbench.harness.models.groups import AUXILIARY, Group
from cispbench.harness.models.output import Features, Output
from cispbench.harness.models.weights_table import load_table
from cispbench.splits.errors import WeightsError

if TYPE_CHECKING:
    from cispbench.harness.models.interface import IncrementalModel

IMAGE_SIZE, CLASSES = 64, 3


def wrong_facts(spec: ModelSpec) -> list[str]:
    """Return what a model's entry says that its network does not show; none if all facts hold.

    The network is built on torch's ``meta`` device, which computes shapes alone: a large one takes no longer. One
    whose constructor computes with values, as torchvision's RegNet does, is built on the CPU.
    """
    from cispbench.harness.models.interface import Encoder

    model = _build(spec)
    wrong = []
    if spec.weights is not None and spec.weights not in load_table():
        wrong.append(f"weights: {spec.weights!r} is no name of weights.yaml")
    found = tuple(name for name in SECTIONS if name in _sections_with_batch_norm(model))
    if set(found) != set(spec.batch_norm_in):
        wrong.append(f"batch_norm_in is {spec.batch_norm_in}, and {found or 'no section'} holds batch norms")
    if not _trains(model, spec.least_images):
        wrong.append(f"least_images is {spec.least_images}, and it cannot be trained on as few images")
    elif spec.least_images > 1 and _trains(model, spec.least_images - 1):
        wrong.append(f"least_images is {spec.least_images}, and it can be trained on fewer images")
    shown = model.offers | frozenset(_output(model.eval(), 1).extras)
    if shown != spec.offers:
        wrong.append(f"offers is {sorted(spec.offers)}, and the network shows {sorted(shown)}")
    wrong += [f"offers names {name!r}, and {text}" for name, text in _untrue_offers(model)]
    encoder = model.sections()["encoder"]
    backbone = encoder.backbone() if isinstance(encoder, Encoder) else None
    if backbone is not None:
        try:
            model.load_encoder(backbone.state_dict(), "its own weights")
        except WeightsError as error:
            wrong.append(f"its encoder does not load weights of its own: {error}")
    elif spec.weights is not None:
        wrong.append(
            f"weights: {spec.weights!r}, and the encoder {type(encoder).__name__} has no backbone to take them"
        )
    return wrong


def _build(spec: ModelSpec) -> IncrementalModel:
    import torch

    def build() -> IncrementalModel:
        model = spec.build(IMAGE_SIZE)
        model.grow(CLASSES)
        return model

    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # what torch raises where the value of a meta tensor is asked for
        return build()


def _untrue_offers(model: IncrementalModel) -> Iterator[tuple[str, str]]:
    """Yield the names of ``IncrementalModel.offers`` that the network does not live up to, and why."""
    branched = [group.layers is not None for group in model.class_groups()]
    if ("branches" in model.offers) != all(branched):
        yield "branches", "its groups have none" if not any(branched) else "the network does not name them"
    if "linear" in model.offers and not _is_linear(model):
        yield "linear", "its groups are no linear classifiers on the last stage, or cannot be auxiliary"


def _is_linear(model: IncrementalModel) -> bool:
    """Whether each group's map is its rows applied to the decoder's map, an auxiliary one's without a gradient."""
    import torch
    from torch.func import functional_call
    from torch.nn import functional

    try:
        model.grow((Group(1, role=AUXILIARY), Group(2)))
    except ValueError:
        return False
    groups = model.class_groups()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    drawn = {names[id(p)]: torch.randn(p.shape) for group in groups for p in group.parameters()}
    decoded = torch.randn(1, groups[0].rows.shape[1], 3, 3, requires_grad=True)
    call = {"features": Features((6, 6), decoded, (), decoded)}
    try:
        output: Output = functional_call(model, drawn, (torch.zeros(1, 3, 6, 6),), call)
    except (NotImplementedError, RuntimeError):  # as where other parameters, on the meta device, take part
        return False
    for group, head in zip(groups, output.heads, strict=True):
        weight, bias = drawn[names[id(group.weight)]], drawn[names[id(group.bias)]]
        expected = functional.conv2d(decoded, weight.view(len(bias), -1, 1, 1), bias)
        if not torch.allclose(head, expected, atol=1e-4) or head.requires_grad != (group.role != AUXILIARY):
            return False
    return True


def _sections_with_batch_norm(model: IncrementalModel) -> set[str]:
    from torch.nn.modules.batchnorm import _BatchNorm

    owners = {id(part): name for name, section in model.sections().items() for part in section.modules()}
    return {owners.get(id(part), "classifier") for part in model.modules() if isinstance(part, _BatchNorm)}


def _trains(model: IncrementalModel, images: int) -> bool:
    try:
        logits = _output(model.train(), images).logits
    except ValueError:  # what torch's batch norms raise for a single value a channel
        return False
    return bool(logits.shape == (images, CLASSES, IMAGE_SIZE, IMAGE_SIZE))


def _output(model: IncrementalModel, images: int) -> Output:
    import torch

    output: Output = model(torch.zeros(images, 3, IMAGE_SIZE, IMAGE_SIZE, device=next(model.parameters()).device))
    return output
