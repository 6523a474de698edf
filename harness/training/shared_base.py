"""A base that several methods share has one key, which leaves the method out: its loss must leave the method out, too.

Looked at in the first iteration alone. ``cispbench method check`` looks at more of the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cispbench.harness.method import Batch, Method, Output
from cispbench.splits.errors import MethodError
from cispbench.splits.settings import VOID

_TOLERANCE = 1e-3  # relative; a sum in another order differs by less, another loss by more


def require_plain_loss(method: Method, terms: Mapping[str, Tensor], output: Output, batch: Batch) -> None:
    """Raise MethodError unless ``terms`` add up to the mean cross-entropy over non-void pixels.

    Otherwise other methods would go on from a base that this one has made in its own way. Losses that are not finite
    are left to ``nonfinite.py``.
    """
    total = torch.stack([term.detach().float() for term in terms.values()]).sum()
    with torch.no_grad():
        labelled = (batch.target != VOID).sum().clamp(min=1)
        logits = output.logits.float()
        plain = torch.nn.functional.cross_entropy(logits, batch.target, ignore_index=VOID, reduction="sum") / labelled
    found, expected = float(total), float(plain)
    if math.isfinite(found) and abs(found - expected) > _TOLERANCE * max(1.0, abs(expected)):
        raise MethodError(
            f"the loss of {method.name} at step 0 is {found:.6g}, and plain cross-entropy is {expected:.6g}: other "
            "methods would share this base.",
            hint="Keep step 0 plain, or set shared_base = False in its class.",
        )
