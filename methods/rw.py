"""RW: Riemannian walk for incremental learning (Chaudhry et al., ECCV 2018), as MiB's release runs it.

Released code: github.com/fcdl94/MiB at 1c58983, ``--method RW``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cispbench.harness.machine.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


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
