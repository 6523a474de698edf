"""PI: continual learning through synaptic intelligence (Zenke et al., ICML 2017), as MiB's release runs it.

Released code: github.com/fcdl94/MiB at 1c58983, ``--method PI``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cispbench.harness.machine.lazy import torch
from cispbench.harness.method import StepContext
from cispbench.methods.importance import ImportanceMethod, ImportanceOptions, parameters_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PIOptions(ImportanceOptions):
    """PI's options. ``path_gradient``: a move is paired with the gradient after it, or with the one before it."""

    path_gradient: Literal["after", "before"] = "after"


def extend_path(path: Tensor, gradient: Tensor, before: Tensor, now: Tensor) -> Tensor:
    """Return the path integral of one parameter with one more move: s + g (before - now).

    ``before`` and ``now`` are the parameter's values one iteration earlier and at present. In the release ``gradient``
    is that of ``now``, the gradient after the move; the one that caused it is that of ``before``. Source:
    fcdl94/MiB, utils/regularizer.py:164-172.
    """
    return path + gradient * (before - now)


def path_importance(path: Tensor, start: Tensor, end: Tensor, previous: Tensor | None = None) -> Tensor:
    """Return a step's importance of one parameter: max(0, s / ((end - start)^2 + 1e-20)), plus the previous one.

    ``start`` is the previous model's value (of a new parameter its initial one), ``end`` the value after training;
    ``previous`` what the step before returned, None for a new parameter. NaN becomes 0. The release adds, although
    its comment says that it averages: fcdl94/MiB, utils/regularizer.py:185-192.
    """
    score = path / ((end - start) ** 2 + 1e-20)
    score = torch.where(score > 0, score, 0.0)
    return score if previous is None else score + previous


class PI(ImportanceMethod):
    """A parameter is important if its moves lowered the loss much, and it moved little in all."""

    name = "pi"
    Options = PIOptions
    options: PIOptions
    weighs = ("score",)

    def initialise(self, context: StepContext) -> None:
        """Fix the penalty's weights and start the path; new parameters start where they are now."""
        super().initialise(context)
        old = parameters_of(context.previous)
        for name, value in parameters_of(context.model).items():
            self.kept["path"][name] = torch.zeros_like(value)
            if name not in old:
                self.kept["start"][name] = value.clone()

    def measure(self, gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
        """Extend the path by the move since the iteration before."""
        path, before, earlier = self.kept["path"], self.kept["before"], self.kept["gradient"]
        for name, gradient in gradients.items():
            if name in before:
                paired = gradient if self.options.path_gradient == "after" else earlier[name]
                path[name] = extend_path(path[name], paired, before[name], parameters[name])
            before[name] = parameters[name].clone()
            if self.options.path_gradient == "before":
                earlier[name] = gradient.clone()

    def after_training(self, context: StepContext) -> None:
        """Turn the path into importances, and add those of the steps before."""
        start, end = self.kept["start"] | parameters_of(context.previous), parameters_of(context.model)
        previous = self.kept["score"]
        self.kept["score"] = {
            name: path_importance(path, start[name], end[name], previous.get(name))
            for name, path in self.kept["path"].items()
        }
        super().after_training(context)
