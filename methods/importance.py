"""The importance of parameters, and the penalty that holds important ones where the previous step left them.

EWC, PI and RW share it. Source: fcdl94/MiB at 1c58983, utils/regularizer.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cispbench.harness.machine.lazy import torch
from cispbench.harness.method import Batch, Method, Output, StepContext
from cispbench.methods.losses import Weight, cross_entropy, labelled_pixels
from cispbench.splits.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

    from cispbench.harness.models.interface import IncrementalModel


@dataclass(frozen=True)
class ImportanceOptions:
    """What EWC, PI and RW have in common; ``importance`` is the weight of the penalty.

    ``normalise``: importances are scaled to 0 ... 1, one parameter at a time. ``void_in_mean``: void pixels, which
    cost 0, count in the mean of the cross-entropy.
    """

    importance: Weight = 500.0
    normalise: bool = True
    void_in_mean: bool = True


def normalise(importance: Tensor) -> Tensor:
    """Return the importance of one parameter, of any shape, scaled to 0 ... 1: (I - min I) / (max I - min I + 1e-8).

    A parameter of a single element, or one whose elements are all equal, gets 0.
    """
    lowest, highest = importance.aminmax()
    return (importance - lowest) / (highest - lowest + 1e-8)


def update_fisher(fisher: Tensor, gradient: Tensor, alpha: float = 0.9) -> Tensor:
    """Return the running mean of squared gradients: alpha g^2 + (1 - alpha) F, of the shape of both.

    ``alpha`` is the weight of the new gradient: with 0.9 little more than the last batch counts. Source:
    fcdl94/MiB, utils/regularizer.py:99.
    """
    return alpha * gradient**2 + (1 - alpha) * fisher


def quadratic_penalty(
    parameters: Mapping[str, Tensor], anchors: Mapping[str, Tensor], importance: Mapping[str, Tensor]
) -> Tensor:
    """Return the sum of I (theta - theta_old)^2 over all elements of the parameters named in ``importance``.

    The result has no dimensions. ``parameters`` and ``anchors`` (theta_old) may hold more names. Source:
    fcdl94/MiB, utils/regularizer.py:78-84.
    """
    terms = [(weight * (parameters[name] - anchors[name]) ** 2).sum() for name, weight in importance.items()]
    if terms:
        return torch.stack(terms).sum()
    # Beside the parameters, if there are any: what is logged is put together with the terms of the loss.
    return next(iter(parameters.values()), torch.zeros(())).new_zeros(())


def parameters_of(model: IncrementalModel | None) -> dict[str, Tensor]:
    """Return the values of a network's parameters by name; nothing is copied. None has none."""
    return {} if model is None else {name: parameter.detach() for name, parameter in model.named_parameters()}


class ImportanceMethod(Method):
    """Plain cross-entropy, and a penalty on moves of the parameters that were important in the steps before.

    A subclass measures in ``measure`` what ``weighs`` names, and may keep more in ``kept``: tensors by their kind and
    the parameter's name.
    """

    shared_base = False  # step 0 trains as fine-tuning does, but its importances are measured meanwhile
    reads_previous = False
    Options: ClassVar[type[Any]] = ImportanceOptions
    options: ImportanceOptions
    weighs: ClassVar[tuple[str, ...]]  # the kinds whose sum is the penalty's weight in the next step

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.kept: dict[str, dict[str, Tensor]] = defaultdict(dict)

    @abstractmethod
    def measure(self, gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
        """Go on measuring: ``gradients`` are the data's alone, ``parameters`` their values before the update."""

    def initialise(self, context: StepContext) -> None:
        """Fix the penalty's weights, which stay the same during the step."""
        measured = [self.kept[kind] for kind in self.weighs]
        if context.step > 0 and not all(measured):
            raise MethodError(
                f"{self.name} has no {' and no '.join(self.weighs)} from step {context.step - 1}, which it measures "
                "while that step is trained.",
                hint="Train the steps before with this method, too, instead of importing their weights.",
            )
        scale = normalise if self.options.normalise else torch.clone
        names = measured[0]
        self.kept["weight"] = {name: torch.stack([scale(kind[name]) for kind in measured]).sum(0) for name in names}

    def losses(self, batch: Batch, output: Output, previous: Output | None, context: StepContext) -> dict[str, Tensor]:
        """Return the cross-entropy; the penalty is added after the importances have seen its gradient."""
        return {"cross_entropy": cross_entropy(output.logits, batch.target, self.options.void_in_mean)}

    def counts(self, batch: Batch, previous: Output | None, context: StepContext) -> dict[str, Tensor | int]:
        """The cross-entropy is a mean over labelled pixels, unless void counts in it."""
        return {} if self.options.void_in_mean else {"cross_entropy": labelled_pixels(batch.target)}

    def after_gradients(self, gradients: Mapping[str, Tensor], context: StepContext) -> None:
        """Measure by the data's gradients, then add the penalty's, in this order (fcdl94/MiB, train.py:125-139)."""
        parameters = parameters_of(context.model)
        self.measure(gradients, parameters)
        if context.previous is None:
            return
        factor, anchors = self.options.importance, parameters_of(context.previous)
        weights = {name: weight for name, weight in self.kept["weight"].items() if name in gradients}
        context.log("penalty", factor * quadratic_penalty(parameters, anchors, weights))
        for name, weight in weights.items():
            gradients[name].add_(weight * (parameters[name] - anchors[name]), alpha=2 * factor)

    def after_training(self, context: StepContext) -> None:
        """Drop what the next step does not need."""
        self.kept = defaultdict(dict, {kind: self.kept[kind] for kind in self.weighs})

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is kept, by kind and parameter."""
        return {f"{kind}.{name}": tensor for kind, found in self.kept.items() for name, tensor in found.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` returned."""
        self.kept = defaultdict(dict)
        for key, tensor in state.items():
            kind, _, name = key.partition(".")
            self.kept[kind][name] = tensor
