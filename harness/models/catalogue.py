"""Networks: what one states about itself, and how the installed ones are found and built.

Networks are plug-ins of the entry-point group ``cispbench.models``; the built-in ones are found like any other.

To add one, for example DeepLabV3 on a RegNet, a package needs three things:

1. An encoder, a subclass of ``interface.Encoder`` whose docstring says what ``forward`` returns; or a whole network, a
   subclass of ``interface.IncrementalModel``, where neither ``DeepLabV3`` nor ``Segmenter`` fits.
2. An entry, a ``ModelSpec``, which states all facts; none is inferred from a name. Its module must not import torch at
   the top: facts are read by commands that compute nothing. ``build`` imports what it needs::

       def build(image_size):
           from cispbench.harness.models.deeplab import DeepLabV3
           from my_package.regnet import RegNetEncoder

           return DeepLabV3(RegNetEncoder())

       REGNET = ModelSpec(
           name="deeplabv3-regnet", family="deeplabv3", encoder="regnet_y_8gf", build=build, least_images=2,
           batch_norm_in=("encoder", "decoder"), offers=frozenset({"linear"}),
       )

3. An entry point that leads to the entry, under the entry's own name::

       [project.entry-points."cispbench.models"]
       deeplabv3-regnet = "my_package.models:REGNET"

Then ``cispbench list models`` shows it and ``--model deeplabv3-regnet`` takes it. ``model_facts.wrong_facts`` holds an
entry's facts against the network that it builds; call it in a test of your package.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cispbench.harness.models.groups import CLASSIFIER
from cispbench.splits.errors import CispbenchError
from cispbench.splits.plugins import Registry

if TYPE_CHECKING:
    from cispbench.harness.models.interface import IncrementalModel

VERSION = 3  # raised whenever the numbers of the built-in networks change: part of every step's key
ALL = "all"  # stands for every section and the classifier


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The facts of a network. Raises CispbenchError for a fact that is out of range.

    ``name``: what ``--model`` takes. ``family``: whose recipes fit it (``deeplabv3``, ``segmenter``, or another family
    with recipes of its own). ``encoder``: the encoder's name in lists.
    ``build``: takes the side of the training images in pixels and returns the network with random weights and no class.
    ``weights``: the usual pre-trained weights of the encoder, by a name of ``weights.yaml``; None: there are none, so
    that only ``--weights none`` or a file will do.
    ``least_images``: the fewest images that a forward pass of training can take: 2 where a batch norm sees one value an
    image, as behind a global pooling.
    ``sections``: the names of the network's ``sections()``, by which recipes give learning rates. ``batch_norm_in``:
    which of them, and "classifier", hold batch norms; the encoder's keep their statistics under ``freeze_batch_norm``.
    Batch norms make the result depend on how a batch is divided, which is then part of a step's key.
    ``offers``: what methods may need (``Method.needs``): "linear", if each group is a linear classifier on the last one
    of ``Output.stages`` and may be auxiliary (``groups.py``); "branches", if each group has layers of its own
    (``ClassGroup.branch``); the names in ``Output.extras``; and names of your own.
    ``version``: raised whenever the network's numbers change, so that steps of the old one are not taken for the new.
    ``imports``: slow packages that ``build`` imports besides torch; a sweep loads them once.
    """

    name: str
    family: str
    encoder: str
    build: Callable[[int], IncrementalModel]
    weights: str | None = None
    least_images: int = 1
    sections: tuple[str, ...] = ("encoder", "decoder")
    batch_norm_in: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    offers: frozenset[str] = frozenset()
    version: int = 1

    def __post_init__(self) -> None:
        if self.least_images < 1:
            raise CispbenchError(f"the model {self.name!r}: least_images is at least 1, not {self.least_images}.")
        sections = (*self.sections, CLASSIFIER)
        if not set(self.batch_norm_in) <= set(sections):
            raise CispbenchError(
                f"the model {self.name!r}: batch_norm_in names {self.batch_norm_in}.",
                hint=f"Sections are {', '.join(sections)}.",
            )


MODELS: Registry[ModelSpec] = Registry(
    "cispbench.models",
    what="model",
    wanted="a cispbench.harness.models.catalogue.ModelSpec",
    fits=lambda loaded: isinstance(loaded, ModelSpec),
)


def model_spec(name: str) -> ModelSpec:
    """Return a model's facts. Raises UsageError with the nearest name, CispbenchError for a broken plug-in."""
    return MODELS.load(name)


def lacking(name: str, needs: frozenset[str]) -> str | None:
    """Return what a method ``needs`` and a model does not offer, with the models that offer all of it; None if none."""
    missing = needs - model_spec(name).offers
    if not missing:
        return None
    fitting = [spec.name for spec in MODELS.load_all() if needs <= spec.offers]
    others = f"choose one by --model: {', '.join(fitting)}" if fitting else "no installed network offers it"
    return f"it needs a network that offers {', '.join(sorted(missing))}; {others}"


def trains_batch_norm(name: str, fixed: Collection[str] = ()) -> bool:
    """Whether a model's training depends on statistics over the batch; ``fixed``: sections whose norms do not."""
    return ALL not in fixed and not set(model_spec(name).batch_norm_in) <= set(fixed)


def least_images(name: str) -> int:
    """Return the number of images that a model can be trained on at once, at least."""
    return model_spec(name).least_images


def build_model(name: str, image_size: int) -> IncrementalModel:
    """Build a model with random weights and no class yet; ``image_size`` sets a ViT's position grid.

    Raises CispbenchError if the plug-in builds anything else than an ``IncrementalModel``.
    """
    from cispbench.harness.models.interface import IncrementalModel

    model: object = model_spec(name).build(image_size)
    if not isinstance(model, IncrementalModel):
        raise CispbenchError(f"the model {name!r} builds a {type(model).__name__}, not an IncrementalModel.")
    return model
