"""RW: Riemannian walk for incremental learning (Chaudhry et al., ECCV 2018), as MiB's release runs it.

Released code: github.com/fcdl94/MiB at 1c58983, ``--method RW``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cispbench.harness.machine.lazy import torch
from cispbench.harness.method import Range, StepContext
from cispbench.methods.ewc import EWC, EWCOptions
from cispbench.methods.losses import Weight

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RWOptions(EWCOptions):
    """RW's options: EWC's, and ``interval``, the length of a move in iterations."""

    importance: Weight = 100.0
    interval: Annotated[int, Range(least=1, most=1_000_000)] = 10


def extend_path(path: Tensor, gradient: Tensor, anchor: Tensor, now: Tensor, fisher: Tensor) -> Tensor:
    """Return the path of one parameter with one more move: r + g (anchor - now) / (F (now - anchor)^2 / 2 + 1e-8).

    ``anchor`` is the parameter's value some iterations earlier, ``now`` that at present, at which ``gradient`` was
    taken; ``fisher`` is F as it was before this iteration. Source: fcdl94/MiB, utils/regularizer.py:261-279.
    """
    move = now - anchor
    return path - gradient * move / (0.5 * fisher * move**2 + 1e-8)


def path_importance(path: Tensor, previous: Tensor | None = None) -> Tensor:
    """Return a step's importance of one parameter: max(0, r), or the mean of this and the previous one.

    ``previous`` is what the step before returned, None for a new parameter. NaN becomes 0. Source: fcdl94/MiB,
    utils/regularizer.py:281-287.
    """
    score = torch.where(path > 0, path, 0.0)
    return score if previous is None else 0.5 * (score + previous)


class RW(EWC):
    """A parameter is important by the Fisher matrix, and by how much its moves lowered the loss for their length."""

    name = "rw"
    Options = RWOptions
    options: RWOptions
    weighs = ("fisher", "score")

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.iteration = 0  # of the step

    def initialise(self, context: StepContext) -> None:
        """Fix the penalty's weights and start the path."""
        super().initialise(context)
        self.iteration = 0
        self.kept["path"] = {name: torch.zeros_like(tensor) for name, tensor in self.kept["fisher"].items()}

    def measure(self, gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
        """Extend the path at the end of a move, by the Fisher matrix of the iteration before; then update that."""
        if self.iteration % self.options.interval == 0:
            path, anchors, fisher = self.kept["path"], self.kept["anchor"], self.kept["fisher"]
            for name, gradient in gradients.items():
                if name in anchors:
                    path[name] = extend_path(path[name], gradient, anchors[name], parameters[name], fisher[name])
                anchors[name] = parameters[name].clone()
        self.iteration += 1
        super().measure(gradients, parameters)

    def after_training(self, context: StepContext) -> None:
        """Turn the path into importances, and average them with those of the steps before."""
        previous = self.kept["score"]
        self.kept["score"] = {
            name: path_importance(path, previous.get(name)) for name, path in self.kept["path"].items()
        }
        super().after_training(context)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is kept, and where the present move began."""
        return {**super().state_dict(), "iteration": torch.tensor(self.iteration)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` returned."""
        super().load_state_dict({key: tensor for key, tensor in state.items() if key != "iteration"})
        self.iteration = int(state.get("iteration", 0))  # the weights of an imported step have no state
