"""PI: continual learning through synaptic intelligence (Zenke et al., ICML 2017), as MiB's release runs it.

Released code: github.com/fcdl94/MiB at 1c58983, ``--method PI``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cispbench.harness.machine.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


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
