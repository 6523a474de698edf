"""The importance of parameters, and the penalty that holds important ones where the previous step left them.

EWC, PI and RW share it. Source: fcdl94/MiB at 1c58983, utils/regularizer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cispbench.harness.machine.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


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
    return torch.stack(terms).sum() if terms else torch.zeros(())
