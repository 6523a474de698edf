"""Hold an entry's facts against the network that it builds: a test for built-in models and for those of plug-ins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cispbench.harness.models.catalogue import ModelSpec
from cispbench.harness.models.groups import CLASSIFIER
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
    if set(spec.sections) != set(model.sections()):
        wrong.append(f"sections is {spec.sections}, and the network's are {tuple(model.sections())}")
    found = tuple(name for name in (*spec.sections, CLASSIFIER) if name in _sections_with_batch_norm(model))
    if set(found) != set(spec.batch_norm_in):
        wrong.append(f"batch_norm_in is {spec.batch_norm_in}, and {found or 'no section'} holds batch norms")
    if not _trains(model, spec.least_images):
        wrong.append(f"least_images is {spec.least_images}, and it cannot be trained on as few images")
    elif spec.least_images > 1 and _trains(model, spec.least_images - 1):
        wrong.append(f"least_images is {spec.least_images}, and it can be trained on fewer images")
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


def _sections_with_batch_norm(model: IncrementalModel) -> set[str]:
    from torch.nn.modules.batchnorm import _BatchNorm

    owners = {id(part): name for name, section in model.sections().items() for part in section.modules()}
    return {owners.get(id(part), CLASSIFIER) for part in model.modules() if isinstance(part, _BatchNorm)}


def _trains(model: IncrementalModel, images: int) -> bool:
    import torch

    try:
        device = next(model.parameters()).device
        logits = model.train()(torch.zeros(images, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)).logits
    except ValueError:  # what torch's batch norms raise for a single value a channel
        return False
    return bool(logits.shape == (images, CLASSES, IMAGE_SIZE, IMAGE_SIZE))
