"""A trunk (``IncrementalModel.trunk``) that is frozen: both networks have the same, so that it is computed once.

The trunk of ``context.model`` gives the features of ``context.previous`` where nothing of it is learnt in the phase,
its weights are those of the previous network bit for bit, and nothing in it acts in training alone: no batch norm with
the statistics of the batch, no dropout, no drop path.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cispbench.harness.method import Batch, StepContext
from cispbench.harness.models.interface import IncrementalModel
from cispbench.harness.models.output import Features

# Of what is dropped, as the modules of torch, timm, torchvision and ``models`` name it.
RATES = ("p", "dropout", "dropout_p", "drop_prob", "drop_path", "rate")


def shares_trunk(context: StepContext, learnt: set[int]) -> bool:
    """Return whether the two networks of a context have one frozen trunk; ``learnt``: ids of what the phase learns.

    ``context.model`` is in training mode.
    """
    model, previous = context.model, context.previous
    if previous is None:
        return False
    trunk = model.trunk()
    if any(id(parameter) in learnt for part in trunk for parameter in part.parameters()):
        return False
    if any(_acts_in_training(module) for part in trunk for module in part.modules()):
        return False
    pairs = zip(trunk, previous.trunk(), strict=True)
    return all(_equal(part.state_dict(), before.state_dict()) for part, before in pairs)


@torch.no_grad()
def trunk_features(previous: IncrementalModel, batch: Batch) -> Features:
    """Return the features of a frozen trunk; the previous network is in evaluation mode always."""
    return previous.features(batch.images)


def _acts_in_training(module: nn.Module) -> bool:
    if not module.training:
        return False
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    rates = [getattr(module, name, 0.0) for name in RATES]
    return any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
