"""Names in checkpoints of RCIL, whose convolutions exist twice: ``conv2`` and ``conv2_new``, with ``bn2`` likewise.

In the pyramid they are ``map_convs`` and ``map_convs_new``, which have a norm each, ``map_bn`` and ``map_bn_new``. From
step 1 on the first branches are merged: they have biases, and norms that do nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cispbench.splits.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = (
    (re.compile(r"(?<=\.)conv2(_new)?\."), "conv2.{}.convolutions.0."),
    (re.compile(r"(?<=\.)bn2(_new)?\."), "conv2.{}.norm."),
    (re.compile(r"(?<=head\.)map_convs(_new)?\."), "map_convs.0.{}.convolutions."),
    (re.compile(r"(?<=head\.)map_bn(_new)?\."), "map_convs.0.{}.norm."),
)
_MERGED = re.compile(r"(.*\.first\.)convolutions\.\d+\.bias$")
_IDENTITY = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def our_name(key: str) -> str:
    """Return the name of a released tensor in our networks; what exists once keeps its name."""
    for pattern, ours in _NAMES:
        if branch := pattern.search(key):
            key = pattern.sub(ours.format("second" if branch[1] else "first"), key)
    return key


def without_merged_norms(state: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """Return a state in our names without the norms of merged branches.

    Raises WeightsError, naming ``place``, for such a norm that would change something.
    """
    norms = {f"{match[1]}norm." for key in state if (match := _MERGED.match(key))}
    for norm in sorted(norms):
        for part, value in _IDENTITY.items():
            found = state.get(norm + part)
            if found is not None and bool((found != value).any()):
                raise WeightsError(
                    f"{place}: {norm}{part} belongs to a merged branch, and is not {value:g}.",
                    hint="RCIL's release leaves a norm that does nothing there: is the file complete?",
                )
    return {key: value for key, value in state.items() if not key.startswith(tuple(norms))}
